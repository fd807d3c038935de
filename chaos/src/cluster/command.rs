//! Runs a helper program to its end, under a deadline.

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::error::{Doing, Error, Result};

/// Runs `command`, feeds it `input`, and gives what it printed. A failure status is an error with the end
/// of its output; after `limit` the program is killed.
pub(crate) fn run(command: &mut Command, input: &str, limit: Duration) -> Result<String> {
    let program = name_of(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().doing(|| format!("cannot run {program}"))?;
    let Some(output) = collect(&mut child, input, limit)? else {
        return Err(Error::Late { what: program, limit });
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    Err(Error::Failed { program, status: output.status.to_string(), output: tail(&text, 20) })
}

fn name_of(command: &Command) -> String {
    let path = std::path::Path::new(command.get_program());
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// `None` when the limit passed; the child is dead and reaped in any case.
fn collect(child: &mut Child, input: &str, limit: Duration) -> Result<Option<Output>> {
    let start = Instant::now();
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let input = input.to_owned();
    // Each pipe has its own thread: a program that prints while it reads must not block us.
    thread::spawn(move || stdin.map(|mut pipe| pipe.write_all(input.as_bytes())));
    let out = drain(stdout);
    let err = drain(stderr);
    let left = |start: Instant| limit.saturating_sub(start.elapsed());
    let printed = out.recv_timeout(left(start)).ok().zip(err.recv_timeout(left(start)).ok());
    let status = match printed {
        Some(_) => wait(child, left(start)).doing(|| "cannot wait for a program".to_owned())?,
        None => None,
    };
    if let (Some((stdout, stderr)), Some(status)) = (printed, status) {
        return Ok(Some(Output { status, stdout, stderr }));
    }
    let _ = child.kill();
    let _ = child.wait();
    Ok(None)
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}

/// Waits for a child, at most `limit`. `None`: it still runs.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<std::process::ExitStatus>> {
    let start = Instant::now();
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(Some(status)),
            None if start.elapsed() >= limit => return Ok(None),
            None => thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
