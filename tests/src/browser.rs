//! A headless Chromium, driven by its own protocol over two pipes: what a page shows, does at keys and clicks, and complains
//! of.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::netns::Netns;
use crate::process::Process;
use crate::wait::{patience, uninterrupted};

/// How long the browser may take to start, and to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A browser with one page; dropping it ends it.
#[derive(Debug)]
pub struct Browser {
    /// Ended first.
    process: Process,
    to: File,
    from: File,
    unread: Vec<u8>,
    last: u64,
    session: Option<String>,
    complaints: Vec<String>,
    directory: PathBuf,
}

impl Browser {
    /// Starts one in a network namespace, with a window of so many pixels; its files are in a directory.
    pub fn start(netns: &Netns, directory: &Path, (width, height): (u32, u32)) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let pipes = ["in", "out"].map(|name| directory.join(name));
        for pipe in &pipes {
            let _ = fs::remove_file(pipe);
            mkfifo(pipe, Mode::S_IRWXU)?;
        }
        // Opened both ways, which waits for nobody.
        let open = |pipe| File::options().read(true).write(true).open(pipe);
        let (to, from) = (open(&pipes[0])?, open(&pipes[1])?);
        // Chromium reads commands from descriptor 3 and writes answers to 4.
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec chromium \"$@\" 3<\"$IN\" 4>\"$OUT\"", "sh"])
            .args(["--headless=new", "--remote-debugging-pipe"])
            // It is run as root, and without a GPU or a large /dev/shm.
            .args(["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-background-networking"])
            .args(["--disable-component-update", "--disable-extensions"])
            .arg("--hide-scrollbars")
            .arg(format!("--user-data-dir={}", directory.display()))
            .arg(format!("--window-size={width},{height}"))
            .env("IN", &pipes[0])
            .env("OUT", &pipes[1])
            .env("HOME", directory);
        let process = Process::spawn(
            netns,
            &mut command,
            &directory.join("log"),
            &directory.join("pids"),
        )?;
        let mut browser = Self {
            process,
            to,
            from,
            unread: Vec::new(),
            last: 0,
            session: None,
            complaints: Vec::new(),
            directory: directory.to_owned(),
        };
        browser.attach(width, height)?;
        Ok(browser)
    }

    fn attach(&mut self, width: u32, height: u32) -> Result<()> {
        let target = self.call("Target.createTarget", json!({ "url": "about:blank" }))?;
        let parameters = json!({ "targetId": target["targetId"], "flatten": true });
        let session = self.call("Target.attachToTarget", parameters)?;
        self.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            self.call(&format!("{domain}.enable"), json!({}))?;
        }
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", metrics)?;
        Ok(())
    }

    /// Goes to an address.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let gone = self.call("Page.navigate", json!({ "url": url }))?;
        ensure!(gone["errorText"].is_null(), "{url}: {}", gone["errorText"]);
        Ok(())
    }

    /// Has the page see a preference, such as `prefers-color-scheme`.
    pub fn prefer(&mut self, feature: &str, value: &str) -> Result<()> {
        let features = json!({ "features": [{ "name": feature, "value": value }] });
        self.call("Emulation.setEmulatedMedia", features)?;
        Ok(())
    }

    /// What an expression of JavaScript is, awaited.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let parameters =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", parameters)?;
        if let Some(thrown) = answer.get("exceptionDetails") {
            bail!("{expression}: {thrown}");
        }
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression is true.
    pub fn until(&mut self, expression: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE * patience();
        while self.evaluate(&format!("Boolean({expression})"))? != true {
            ensure!(
                Instant::now() < deadline,
                "the page does not become: {expression}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Presses a key, by its name in the DOM.
    pub fn press(&mut self, key: &str) -> Result<()> {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            "ArrowLeft" => (37, ""),
            "ArrowUp" => (38, ""),
            "ArrowRight" => (39, ""),
            "ArrowDown" => (40, ""),
            other => bail!("no code for {other}"),
        };
        let down = if text.is_empty() {
            "rawKeyDown"
        } else {
            "keyDown"
        };
        for (kind, text) in [(down, text), ("keyUp", "")] {
            let event = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text,
            });
            self.call("Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// Clicks in the middle of the element that a CSS selector finds, which is scrolled to.
    pub fn click(&mut self, selector: &str) -> Result<()> {
        let selector = Value::from(selector);
        let middle = format!(
            "(() => {{ const it = document.querySelector({selector}); \
             it.scrollIntoView({{ block: \"nearest\", inline: \"nearest\" }}); \
             const box = it.getBoundingClientRect(); \
             return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
        );
        let middle = self.evaluate(&middle)?;
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({
                "type": kind, "x": middle[0], "y": middle[1], "button": "left", "clickCount": 1,
            });
            self.call("Input.dispatchMouseEvent", event)?;
        }
        Ok(())
    }

    /// Writes what the window shows to a file, as PNG.
    pub fn screenshot(&mut self, file: &Path) -> Result<()> {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }))?;
        let data = shot["data"].as_str().context("a picture")?;
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory)?;
        }
        Ok(fs::write(file, decoded(data).context("no base64")?)?)
    }

    /// What the page, or the browser about it, has logged as a warning or an error so far, or thrown.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers write the value in place"
    )]
    fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.last += 1;
        let number = self.last;
        let mut message = json!({ "id": number, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = serde_json::to_vec(&message)?;
        bytes.push(0);
        self.to.write_all(&bytes)?;
        let deadline = Instant::now() + PATIENCE * patience();
        loop {
            let mut told = self.next(deadline).with_context(|| method.to_owned())?;
            if told["id"] != number {
                self.note(&told);
                continue;
            }
            ensure!(told["error"].is_null(), "{method}: {}", told["error"]);
            return Ok(told["result"].take());
        }
    }

    /// The next message.
    fn next(&mut self, deadline: Instant) -> Result<Value> {
        loop {
            if let Some(end) = self.unread.iter().position(|it| *it == 0) {
                let message: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(serde_json::from_slice(&message[..end])?);
            }
            let mut ready = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
            let ready = uninterrupted(|| Ok(poll(&mut ready, PollTimeout::from(100_u8))?))?;
            if ready > 0 {
                let mut buffer = [0; 16 << 10];
                let length = self.from.read(&mut buffer)?;
                self.unread.extend(&buffer[..length]);
            } else if Instant::now() > deadline || !self.process.is_running() {
                let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
                bail!("chromium does not answer; its log:\n{log}");
            }
        }
    }

    fn note(&mut self, event: &Value) {
        let parameters = &event["params"];
        let is_bad = |level: &Value| ["warning", "error", "assert"].iter().any(|it| level == it);
        let complains = match event["method"].as_str() {
            Some("Runtime.consoleAPICalled") => is_bad(&parameters["type"]),
            Some("Log.entryAdded") => is_bad(&parameters["entry"]["level"]),
            Some("Runtime.exceptionThrown") => true,
            _ => false,
        };
        if complains {
            self.complaints.push(parameters.to_string());
        }
    }
}

/// Base64 (RFC 4648, section 4) without line breaks.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let six = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held).to_le_bytes()[0]);
            bits &= (1 << held) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded() {
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9vYmFy", "foobar"),
        ] {
            assert_eq!(decoded(text).unwrap(), bytes.as_bytes());
        }
        assert_eq!(decoded("/+8="), Some(vec![0xff, 0xef]));
        assert_eq!(decoded("*"), None);
    }
}
