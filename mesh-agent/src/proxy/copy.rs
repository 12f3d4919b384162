//! EDGE: bytes between two TCP connections.

use std::io;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;

use super::socket;

/// Bytes read from the kernel at once.
const BUFFER: usize = 64 << 10;

/// Copies both ways until both ends are done; half-close travels as half-close, a failure as a reset of both.
///
/// Returns the bytes sent from `a` to `b` and from `b` to `a`.
pub(super) async fn splice(mut a: TcpStream, mut b: TcpStream) -> io::Result<(u64, u64)> {
    let copied = copy_bidirectional_with_sizes(&mut a, &mut b, BUFFER, BUFFER).await;
    if copied.is_err() {
        socket::reset(a);
        socket::reset(b);
    }
    copied
}
