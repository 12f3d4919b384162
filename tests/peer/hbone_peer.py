#!/usr/bin/python3
"""An HBONE peer that shares no code with the agent: Python's ssl (OpenSSL) under hyper-h2.

Needs the Debian packages python3-h2 and openssl (or `pip install h2`). Three commands:

  issue   makes a workload's certificate from the root of a CA directory
  server  accepts tunnels and echoes, connects, or refuses
  client  opens a tunnel and streams, sends, and compares what comes back

Output is one JSON object a line, {"event": ..., ...}, for scenarios to read. Exit code 0 means that what was asked for
happened. Flow-control windows are HTTP/2's small defaults unless told otherwise.
"""

import argparse
import hashlib
import json
import os
import select
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings


def say(event, **fields):
    """Prints one event; lines of several threads do not mix."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def address(text):
    """'10.0.0.1:15008' or '[::1]:15008' as a pair."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def issue(args):
    """A P-256 leaf with one critical URI, signed by root-key.pem, in PREFIX.pem and PREFIX.key."""
    cert, key = args.out + ".pem", args.out + ".key"
    extensions = (
        f"subjectAltName=critical,URI:{args.identity}\n"
        "extendedKeyUsage=serverAuth,clientAuth\nkeyUsage=critical,digitalSignature\n"
    )
    with tempfile.TemporaryDirectory() as tmp:
        request, extfile = os.path.join(tmp, "csr"), os.path.join(tmp, "ext")
        with open(extfile, "w", encoding="ascii") as file:
            file.write(extensions)
        new_key = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
        sign = ["openssl", "x509", "-req", "-in", request, "-days", str(args.days), "-extfile", extfile]
        sign += ["-CA", f"{args.ca}/root-cert.pem", "-CAkey", f"{args.ca}/root-key.pem"]
        sign += ["-set_serial", str(int.from_bytes(os.urandom(8), "big")), "-out", cert]
        for command in (
            new_key + ["-out", key],
            ["openssl", "req", "-new", "-key", key, "-subj", "/", "-out", request],
            sign,
        ):
            subprocess.run(command, check=True, capture_output=True)
    say("issued", cert=cert, key=key, identity=args.identity)
    return 0


def tls_context(args, side):
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(args.root)
    if args.cert:
        context.load_cert_chain(args.cert, args.key)
    context.set_alpn_protocols(["h2"])
    return context


def identities(tls):
    names = (tls.getpeercert() or {}).get("subjectAltName", ())
    return [name for kind, name in names if kind == "URI"]


class Tunnel:
    """One HTTP/2 connection: the socket, its frames, and bytes that wait for the peer's window."""

    def __init__(self, tls, client_side, args):
        config = h2.config.H2Configuration(
            client_side=client_side,
            header_encoding="utf-8",
            # A plain CONNECT has neither :scheme nor :path, which h2's checks want of every request.
            validate_inbound_headers=False,
            validate_outbound_headers=False,
        )
        self.tls = tls
        self.http = h2.connection.H2Connection(config)
        self.waiting = {}
        self.ended = set()
        values = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: args.window}
        if not client_side:
            values[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = args.max_streams
        self.http.local_settings = h2.settings.Settings(client=client_side, initial_values=values)
        self.http.initiate_connection()
        if args.window > 65535:
            self.http.increment_flow_control_window(args.window - 65535)
        self.flush()

    def flush(self):
        """Gives waiting bytes to the peer as far as its windows allow."""
        for stream, waiting in list(self.waiting.items()):
            while waiting:
                room = self.http.local_flow_control_window(stream)
                size = min(room, self.http.max_outbound_frame_size, len(waiting))
                if size <= 0:
                    break
                self.http.send_data(stream, bytes(waiting[:size]))
                del waiting[:size]
            if not waiting and stream in self.ended:
                self.ended.discard(stream)
                del self.waiting[stream]
                self.http.end_stream(stream)
        data = self.http.data_to_send()
        if data:
            self.tls.sendall(data)

    def send(self, stream, data=b"", end=False):
        self.waiting.setdefault(stream, bytearray()).extend(data)
        if end:
            self.ended.add(stream)
        self.flush()

    def forget(self, stream):
        self.waiting.pop(stream, None)
        self.ended.discard(stream)

    def events(self, timeout=None):
        """The events of one read; none at the end of the connection, empty after the timeout."""
        if not self.tls.pending() and not select.select([self.tls], [], [], timeout)[0]:
            return []
        data = self.tls.recv(65536)
        if not data:
            return None
        events = self.http.receive_data(data)
        self.flush()
        return events


def common(tunnel, event):
    """What both ends do with an event, whatever it is about."""
    if isinstance(event, h2.events.DataReceived):
        tunnel.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
    elif isinstance(event, h2.events.RemoteSettingsChanged):
        changed = {code_name(c): s.new_value for c, s in event.changed_settings.items()}
        say("settings", **changed)
    elif isinstance(event, h2.events.ConnectionTerminated):
        say("goaway", code=int(event.error_code), last=event.last_stream_id)
    elif isinstance(event, h2.events.PingReceived):
        say("ping")


def code_name(code):
    return getattr(code, "name", None) or f"SETTING_{int(code)}"


def client(args):
    """Opens --streams streams at once, sends, half-closes, and compares the echo."""
    source = (args.source, 0) if args.source else None
    raw = socket.create_connection(address(args.connect), timeout=args.timeout, source_address=source)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        tls = tls_context(args, ssl.PROTOCOL_TLS_CLIENT).wrap_socket(raw)
    except (ssl.SSLError, OSError) as error:
        say("tls_failed", error=str(error))
        return 2
    found = identities(tls)
    say("tls", version=tls.version(), cipher=tls.cipher()[0], alpn=tls.selected_alpn_protocol(), peer=found)
    if args.expect and args.expect not in found:
        say("unexpected_peer", expected=args.expect, found=found)
        return 3
    try:
        return exchange(Tunnel(tls, True, args), args)
    except (ssl.SSLError, OSError, h2.exceptions.ProtocolError) as error:
        # In TLS 1.3 a server refuses our certificate only after our side of the handshake is done.
        say("tunnel_failed", error=str(error))
        return 2


def exchange(tunnel, args):
    payload = args.send.encode() if args.bytes is None else os.urandom(args.bytes)
    headers = [(":method", args.method), (":authority", args.authority)]
    if args.method != "CONNECT":
        headers += [(":scheme", "http"), (":path", "/")]
    headers += [tuple(header.split("=", 1)) for header in args.header]
    # Streams beyond the peer's limit would be refused; wait for its SETTINGS first.
    streams, got, status, how = [], {}, {}, {}
    deadline = time.monotonic() + args.timeout
    opened = False
    while len(how) < args.streams and time.monotonic() < deadline:
        events = tunnel.events(0.2)
        if events is None:
            say("closed")
            break
        for event in events:
            common(tunnel, event)
            stream = getattr(event, "stream_id", None)
            if isinstance(event, h2.events.RemoteSettingsChanged) and not opened:
                opened = True
                for _ in range(args.streams):
                    stream = tunnel.http.get_next_available_stream_id()
                    tunnel.http.send_headers(stream, headers)
                    streams.append(stream)
                    got[stream] = bytearray()
                tunnel.flush()
            elif isinstance(event, h2.events.ResponseReceived):
                fields = dict(event.headers)
                status[stream] = int(fields[":status"])
                say("response", stream=stream, status=status[stream], baggage=fields.get("baggage"))
                if status[stream] == 200:
                    tunnel.send(stream, payload, end=not args.reset)
                    if args.reset:
                        tunnel.forget(stream)
                        tunnel.http.reset_stream(stream, h2.errors.ErrorCodes[args.reset])
                        how[stream] = "we reset"
            elif isinstance(event, h2.events.DataReceived):
                got[stream].extend(event.data)
            elif isinstance(event, h2.events.StreamEnded):
                how[stream] = "ended"
            elif isinstance(event, h2.events.StreamReset):
                # A reset without error after the end of a refused stream is no news.
                how.setdefault(stream, f"reset {int(event.error_code)}")
        tunnel.flush()
    good = bool(streams)
    for stream in streams:
        same = bytes(got[stream]) == payload
        good &= status.get(stream) == args.status and (args.status != 200 or bool(args.reset) or same)
        digest = hashlib.sha256(got[stream]).hexdigest()[:16]
        text = bytes(got[stream][:64]).decode("utf-8", "replace") if args.bytes is None else None
        say("end", stream=stream, status=status.get(stream), how=how.get(stream, "timeout"),
            received=len(got[stream]), echo=same, sha256=digest, text=text)
    if args.hold:
        hold(tunnel, args.hold)
    tunnel.http.close_connection()
    tunnel.flush()
    return 0 if good else 1


def hold(tunnel, seconds):
    """Keeps the tunnel open and answers PINGs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        events = tunnel.events(0.2)
        if events is None:
            say("closed")
            return
        for event in events:
            common(tunnel, event)
        tunnel.flush()


def server(args):
    listener = socket.create_server(address(args.listen), family=family(args.listen), backlog=64)
    say("listening", port=listener.getsockname()[1])
    served = 0
    while not args.tunnels or served < args.tunnels:
        raw, remote = listener.accept()
        served += 1
        thread = threading.Thread(target=serve, args=(raw, remote, args), daemon=True)
        thread.start()
    thread.join()
    return 0


def family(text):
    return socket.AF_INET6 if text.startswith("[") else socket.AF_INET


def serve(raw, remote, args):
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    context = tls_context(args, ssl.PROTOCOL_TLS_SERVER)
    names = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    try:
        tls = context.wrap_socket(raw, server_side=True)
    except (ssl.SSLError, OSError) as error:
        say("tls_failed", error=str(error))
        return
    say("tls", version=tls.version(), cipher=tls.cipher()[0], alpn=tls.selected_alpn_protocol(),
        sni=names[0] if names else None, peer=identities(tls), remote=f"{remote[0]}:{remote[1]}")
    tunnel = Tunnel(tls, False, args)
    received, requests = {}, 0
    try:
        while (events := tunnel.events()) is not None:
            for event in events:
                common(tunnel, event)
                stream = getattr(event, "stream_id", None)
                if isinstance(event, h2.events.RequestReceived):
                    requests += 1
                    received[stream] = 0
                    say("request", stream=stream, headers=event.headers)
                    respond(tunnel, stream, args)
                    if requests == args.goaway_after:
                        goaway(tunnel, stream)
                elif isinstance(event, h2.events.DataReceived) and args.status == 200:
                    received[stream] += len(event.data)
                    tunnel.send(stream, event.data)
                elif isinstance(event, h2.events.StreamEnded):
                    say("half_closed", stream=stream, received=received.get(stream))
                    if args.status == 200:
                        tunnel.send(stream, end=True)
                elif isinstance(event, h2.events.StreamReset):
                    tunnel.forget(stream)
                    say("reset", stream=stream, code=int(event.error_code))
            tunnel.flush()
    except (ssl.SSLError, OSError) as error:
        say("broken", error=str(error))
    except h2.exceptions.ProtocolError as error:
        say("protocol_error", error=repr(error))
    say("closed")


def goaway(tunnel, last):
    """GOAWAY as RFC 9113, 6.8 has it: no new streams, the old ones run on. hyper-h2 has none that lets them."""
    tunnel.flush()
    tunnel.tls.sendall(b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + struct.pack(">II", last, 0))
    say("goaway_sent", last=last)


def respond(tunnel, stream, args):
    refused = args.status != 200
    fields = [(":status", str(args.status))]
    if args.baggage and not refused:
        fields.append(("baggage", args.baggage))
    tunnel.http.send_headers(stream, fields, end_stream=refused)
    if args.reset:
        tunnel.http.reset_stream(stream, h2.errors.ErrorCodes[args.reset])
    tunnel.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("issue", help="make a certificate from a CA directory")
    one.add_argument("--ca", required=True, help="directory with root-cert.pem and root-key.pem")
    one.add_argument("--identity", required=True, help="spiffe://<trust domain>/ns/<namespace>/sa/<account>")
    one.add_argument("--out", required=True, help="prefix: writes PREFIX.pem and PREFIX.key")
    one.add_argument("--days", type=int, default=1, help="how long it is valid; 0: until now")
    one.set_defaults(run=issue)

    ends = argparse.ArgumentParser(add_help=False)
    ends.add_argument("--cert", help="PEM chain, leaf first (client: leave out to present none)")
    ends.add_argument("--key", help="PEM key")
    ends.add_argument("--root", required=True, help="PEM roots that the peer must chain to")
    ends.add_argument("--window", type=int, default=65535, help="stream and connection window, bytes")
    ends.add_argument("--status", type=int, default=200, help="server: answer; client: the answer expected")
    ends.add_argument("--reset", help="reset streams once answered, with this code, such as CANCEL")

    two = commands.add_parser("server", parents=[ends], help="accept tunnels and echo")
    two.add_argument("--listen", default="127.0.0.1:0", help="address:port")
    two.add_argument("--max-streams", type=int, default=100, help="MAX_CONCURRENT_STREAMS")
    two.add_argument("--baggage", help="baggage of the response")
    two.add_argument("--goaway-after", type=int, help="GOAWAY after so many requests of a tunnel")
    two.add_argument("--tunnels", type=int, help="exit after so many tunnels")
    two.set_defaults(run=server)

    three = commands.add_parser("client", parents=[ends], help="open a tunnel and streams")
    three.add_argument("--connect", required=True, help="address:port of the tunnel, usually <pod>:15008")
    three.add_argument("--source", help="local address to connect from")
    three.add_argument("--expect", help="the server's identity must be this")
    three.add_argument("--authority", required=True, help="ip:port, [v6]:port or host:port")
    three.add_argument("--method", default="CONNECT")
    three.add_argument("--header", action="append", default=[], help="name=value, repeatable")
    three.add_argument("--send", default="hello", help="text to send")
    three.add_argument("--bytes", type=int, help="send so many random bytes instead")
    three.add_argument("--streams", type=int, default=1, help="streams at once")
    three.add_argument("--hold", type=float, default=0, help="stay so many seconds afterwards")
    three.add_argument("--timeout", type=float, default=10, help="seconds for everything")
    three.set_defaults(run=client)

    args = parser.parse_args()
    sys.exit(args.run(args))


if __name__ == "__main__":
    main()
