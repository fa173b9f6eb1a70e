//! Clients with streams of their own: execs and attaches.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Resource, Rlimit, prlimit};
use rustix::termios::{Winsize, tcsetwinsize};

use super::*;
use crate::sys::rights;
use crate::wire::{AttachSpec, Ends, StreamedExec, Told};

/// A client's side of it all; everything blocks.
struct Client {
    line: UnixStream,
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
}

const ALL: Ends = Ends { stdin: true, stdout: true, stderr: true };
const OUT: Ends = Ends { stdin: false, stdout: true, stderr: false };

impl Client {
    fn new(ends: Ends) -> (Self, Vec<OwnedFd>) {
        let (line, theirs) = UnixStream::pair().unwrap();
        line.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut client = Self { line, stdin: None, stdout: None, stderr: None };
        let mut descriptors = vec![OwnedFd::from(theirs)];
        if ends.stdin {
            let (read, write) = io::pipe().unwrap();
            client.stdin = Some(OwnedFd::from(write).into());
            descriptors.push(read.into());
        }
        for (wanted, place) in [(ends.stdout, &mut client.stdout), (ends.stderr, &mut client.stderr)] {
            if wanted {
                let (read, write) = io::pipe().unwrap();
                *place = Some(OwnedFd::from(read).into());
                descriptors.push(write.into());
            }
        }
        (client, descriptors)
    }

    fn told(&mut self) -> io::Result<(Told, Option<File>)> {
        let mut bytes = [0; 256];
        let got = rights::receive(&self.line, &mut bytes)?;
        let told = codec::decode(&bytes[..got.bytes]).map_err(io::Error::other)?;
        let (told, length) = told.ok_or(io::ErrorKind::UnexpectedEof)?;
        assert_eq!(length, got.bytes, "one at a time");
        Ok((told, got.descriptors.into_iter().next().map(File::from)))
    }

    fn code(&mut self) -> i32 {
        match self.told().unwrap().0 {
            Told::Ended { exit_code } => exit_code,
            Told::Terminal => panic!("a terminal"),
        }
    }

    fn terminal(&mut self) -> File {
        match self.told().unwrap() {
            (Told::Terminal, Some(master)) => master,
            other => panic!("{other:?}"),
        }
    }

    fn output(&mut self) -> String {
        let mut text = String::new();
        self.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Reads a line of output.
    fn line(&mut self) -> String {
        let mut text = Vec::new();
        let mut stdout = self.stdout.as_ref().unwrap();
        while text.last() != Some(&b'\n') {
            let mut byte = [0];
            assert_eq!(stdout.read(&mut byte).unwrap(), 1, "{text:?}");
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap()
    }

    fn write(&mut self, text: &str) {
        self.stdin.as_ref().unwrap().write_all(text.as_bytes()).unwrap();
    }
}

impl Peer {
    fn send_with(&mut self, mut request: Request) -> Result<Reply, Failure> {
        let descriptors = request.descriptors().map(std::mem::take).unwrap();
        self.last += 1;
        let frame = codec::encode(&Call { id: self.last, request, descriptors: descriptors.len() }).unwrap();
        let borrowed: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
        assert_eq!(rights::send(&self.stream, &frame, &borrowed).unwrap(), frame.len());
        drop(descriptors);
        self.wait(self.last)
    }

    fn stream(&mut self, id: &ContainerId, arguments: &[&str], ends: Ends, terminal: bool) -> Result<Client, Failure> {
        let exec = ExecSpec {
            container: id.clone(),
            process: serde_json::json!({ "args": arguments }),
            confinement: Confinement::default(),
            timeout_ms: 0,
            token: 0,
            output_limit: 0,
            drain_ms: 0,
        };
        let (client, descriptors) = Client::new(ends);
        let spec = StreamedExec { exec, terminal, ends, descriptors };
        self.send_with(Request::ExecStreamed(Box::new(spec))).map(|_| client)
    }

    fn attach(&mut self, spec: &CreateSpec, ends: Ends) -> Result<Client, Failure> {
        let (client, descriptors) = Client::new(ends);
        let spec = AttachSpec { container: spec.container.clone(), terminal: spec.stdio.tty, ends, descriptors };
        self.send_with(Request::Attach(Box::new(spec))).map(|_| client)
    }
}

impl Pod {
    fn with_stdin(&mut self, script: &str, change: impl FnOnce(&mut StdioSpec)) -> CreateSpec {
        let mut spec = self.spec(script, &[]);
        spec.stdio.stdin = true;
        change(&mut spec.stdio);
        self.peer.ok(Request::Create(Box::new(spec.clone())));
        self.peer.ok(Request::Start { container: spec.container.clone() });
        spec
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid.as_raw_nonzero())).unwrap().count()
    }

    fn descriptor_list(&self) -> Vec<std::path::PathBuf> {
        let folder = fs::read_dir(format!("/proc/{}/fd", self.pid.as_raw_nonzero())).unwrap();
        folder.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
    }

    /// Waits until it has no more descriptors than that: a client's leaving is seen some time after it.
    fn settles_at(&self, descriptors: usize) {
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while self.descriptors() != descriptors {
            assert!(
                std::time::Instant::now() < limit,
                "{descriptors} descriptors wanted: {:#?}",
                self.descriptor_list()
            );
            std::thread::yield_now();
        }
    }
}

#[test]
fn an_exec_has_the_client_s_streams_and_tells_its_end() {
    let mut pod = Pod::new();
    let id = pod.run("sleep 100").container;
    let before = pod.descriptors();
    let mut client = pod.peer.stream(&id, &["sh", "-c", "cat; echo err >&2; kill -9 $$"], ALL, false).unwrap();
    assert_eq!(pod.descriptors(), before + 2, "the process and the line");
    client.write("in");
    drop(client.stdin.take());
    assert_eq!(client.output(), "in");
    let mut err = String::new();
    client.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((err.as_str(), client.code()), ("err\n", 137));
    assert_eq!(client.told().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    // Streams nobody wants are /dev/null.
    let mut client = pod.peer.stream(&id, &["sh", "-c", "cat; echo err >&2; echo out"], OUT, false).unwrap();
    assert_eq!((client.output().as_str(), client.code()), ("out\n", 0));
    let failed = pod.peer.stream(&id, &["fail"], ALL, false).err().unwrap();
    assert!(failed.message.contains("no luck"), "{failed}");
    let unknown = pod.peer.stream(&ContainerId::generate(), &["true"], ALL, false).err().unwrap();
    assert_eq!(unknown.kind, ErrorKind::NotFound);
    // One whose end is earlier than its beginning is known.
    let slow = pod.spec("sleep 100", &["slow"]);
    pod.peer.ok(Request::Create(Box::new(slow.clone())));
    pod.peer.ok(Request::Start { container: slow.container.clone() });
    let mut client = pod.peer.stream(&slow.container, &["sh", "-c", "exit 4"], ALL, false).unwrap();
    assert_eq!(client.code(), 4);
    pod.peer.ok(Request::Delete { container: slow.container });
    // The fake engine keeps one for each container that was started.
    pod.settles_at(before + 1);
    assert_eq!(pod.end(), 0);
}

#[test]
fn an_exec_is_killed_when_its_client_hangs_up_or_its_container_goes() {
    let mut pod = Pod::new();
    let spec = pod.run("sleep 100");
    let before = pod.descriptors();
    // Its child keeps the pipe, and ends with it.
    let script = "sleep 100 & echo begun; wait";
    let mut client = pod.peer.stream(&spec.container, &["sh", "-c", script], OUT, false).unwrap();
    assert_eq!(client.line(), "begun\n");
    let Client { line, stdout, .. } = client;
    drop(line);
    let mut rest = String::new();
    stdout.unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    // Another daemon's end of a line is not enough to keep it.
    let mut client = pod.peer.stream(&spec.container, &["sh", "-c", script], OUT, false).unwrap();
    assert_eq!(client.line(), "begun\n");
    pod.peer.ok(Request::Delete { container: spec.container });
    assert_eq!((client.output().as_str(), client.code()), ("", 137));
    assert!(pod.descriptors() <= before);
    assert_eq!(pod.end(), 0);
}

#[test]
fn an_exec_s_terminal_is_the_client_s() {
    let mut pod = Pod::new();
    let id = pod.run("sleep 100").container;
    let before = pod.descriptors();
    let script = "test -t 0 && test -t 2 && read x && stty size && exit 5";
    let mut client = pod.peer.stream(&id, &["sh", "-c", script], Ends::default(), true).unwrap();
    let mut master = client.terminal();
    assert_eq!(pod.descriptors(), before + 2, "the terminal is not kept");
    tcsetwinsize(&master, Winsize { ws_row: 12, ws_col: 34, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    master.write_all(b"go\n").unwrap();
    assert_eq!(client.code(), 5);
    let mut shown = Vec::new();
    // A terminal ends with EIO.
    let _ = master.read_to_end(&mut shown);
    assert_eq!(String::from_utf8(shown).unwrap(), "go\r\n12 34\r\n");
    let sockets = fs::read_dir(pod.folder.path()).unwrap().flatten();
    assert_eq!(sockets.filter(|entry| entry.file_name().to_string_lossy().starts_with("console")).count(), 0);
    assert_eq!(pod.end(), 0);
}

#[test]
fn too_many_descriptors_are_a_limit_that_passes() {
    let mut pod = Pod::new();
    let id = pod.run("sleep 100").container;
    let limit = |most| Rlimit { current: Some(most), maximum: None };
    let open = u64::try_from(pod.descriptors()).unwrap();
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
    for most in open..open + 4 {
        prlimit(Some(pod.pid), Resource::Nofile, Rlimit { maximum: hard, ..limit(most) }).unwrap();
        let refused = pod.peer.stream(&id, &["true"], ALL, false).err().unwrap();
        assert_eq!(refused.kind, ErrorKind::ResourceExhausted, "{most}: {refused}");
    }
    prlimit(Some(pod.pid), Resource::Nofile, Rlimit { maximum: hard, current: hard }).unwrap();
    let mut client = pod.peer.stream(&id, &["echo", "again"], OUT, false).unwrap();
    assert_eq!((client.output().as_str(), client.code()), ("again\n", 0));
    assert_eq!(pod.end(), 0);
}

#[test]
fn clients_see_what_is_printed_from_now_on_and_the_end() {
    let mut pod = Pod::new();
    let spec = pod.with_stdin("echo early; read x; echo \"$x\"; read y; echo \"$y\" >&2; printf last; exit 9", |_| ());
    let before = pod.descriptors();
    let mut first = pod.peer.attach(&spec, ALL).unwrap();
    let mut second = pod.peer.attach(&spec, OUT).unwrap();
    let third = pod.peer.attach(&spec, ALL).unwrap();
    first.write("one\n");
    // `early` may have been read before or after they came.
    for client in [&mut first, &mut second] {
        let line = client.line();
        if line == "early\n" {
            assert_eq!(client.line(), "one\n");
        } else {
            assert_eq!(line, "one\n");
        }
    }
    // Leaving harms nobody, not even with input that was not read yet.
    let mut third = third;
    third.write("two\n");
    drop(third);
    assert_eq!(pod.peer.exit().exit_code, 9);
    assert_eq!((first.output().as_str(), second.output().as_str()), ("last", "last"));
    let mut err = String::new();
    first.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(err, "two\n");
    assert_eq!((first.code(), second.code()), (9, 9));
    let mut lines = log(&spec);
    lines.sort();
    assert_eq!(lines, ["stderr F two", "stdout F early", "stdout F one", "stdout P last"]);
    assert!(pod.descriptors() < before);
    let late = pod.peer.attach(&spec, OUT).err().unwrap();
    assert_eq!(late.kind, ErrorKind::FailedPrecondition);
    assert_eq!(pod.end(), 0);
}

#[test]
fn stdin_once_ends_with_the_first_client_and_else_never() {
    let mut pod = Pod::new();
    let spec = pod.with_stdin("cat; echo eof", |stdio| stdio.stdin_once = true);
    // Who only looks does not count.
    drop(pod.peer.attach(&spec, OUT).unwrap());
    let mut client = pod.peer.attach(&spec, ALL).unwrap();
    client.write("in\n");
    drop(client.stdin.take());
    assert_eq!(client.output(), "in\neof\n", "its output goes on after its input has ended");
    assert_eq!(pod.peer.exit().exit_code, 0);

    let spec = pod.with_stdin("cat; echo eof", |stdio| stdio.stdin_once = true);
    let mut client = pod.peer.attach(&spec, ALL).unwrap();
    client.write("in");
    drop(client);
    assert_eq!(pod.peer.exit().exit_code, 0);
    assert_eq!(log(&spec), ["stdout F ineof"]);

    let spec = pod.with_stdin("read x; echo $x; sleep 100", |_| ());
    drop(pod.peer.attach(&spec, ALL).unwrap());
    let mut client = pod.peer.attach(&spec, ALL).unwrap();
    client.write("still\n");
    assert_eq!(client.line(), "still\n");
    // Output ends for those who hang on while it is removed.
    pod.peer.ok(Request::Delete { container: spec.container });
    assert_eq!((client.output().as_str(), client.code()), ("", 137));
    let none = pod.run("sleep 100");
    let refused = pod.peer.attach(&none, ALL).err().unwrap();
    assert_eq!(refused.kind, ErrorKind::FailedPrecondition);
    assert!(refused.message.contains("without stdin"), "{refused}");
    assert_eq!(pod.end(), 0);
}

#[test]
fn input_waits_for_a_container_that_does_not_read() {
    let mut pod = Pod::new();
    let spec = pod.with_stdin("read x < \"$(dirname \"$0\")/wake\"; wc -c", |stdio| stdio.stdin_once = true);
    fifo(&spec, "wake");
    let mut client = pod.peer.attach(&spec, ALL).unwrap();
    let mut stdin = client.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        for _ in 0..64 {
            stdin.write_all(&[b'x'; 1 << 14]).unwrap();
        }
    });
    // Somebody else is served meanwhile.
    pod.peer.hello();
    fs::write(spec.bundle.join("wake"), "x\n").unwrap();
    writer.join().unwrap();
    assert_eq!(client.output().trim(), (1 << 20).to_string());
    pod.peer.exit();
    assert_eq!(pod.end(), 0);
}

#[test]
fn a_terminal_is_shared_and_resized() {
    let mut pod = Pod::new();
    let script = "read x; stty size; read y; echo \"$y\"";
    let spec = pod.with_stdin(script, |stdio| (stdio.tty, stdio.stdin_once) = (true, true));
    let ends = Ends { stderr: false, ..ALL };
    let mut client = pod.peer.attach(&spec, ends).unwrap();
    let master = client.terminal();
    tcsetwinsize(&master, Winsize { ws_row: 7, ws_col: 8, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    client.write("a\n");
    assert_eq!((client.line().as_str(), client.line().as_str()), ("a\r\n", "7 8\r\n"));
    // Whoever leaves a terminal may come back, also to one that was for the first client.
    drop((client, master));
    let mut client = pod.peer.attach(&spec, ends).unwrap();
    drop(client.terminal());
    client.write("back\n");
    assert_eq!(pod.peer.exit().exit_code, 0);
    assert_eq!((client.output().as_str(), client.code()), ("back\r\nback\r\n", 0));
    let plain = pod.run("sleep 100");
    let mut wrong = plain.clone();
    wrong.stdio.tty = true;
    let refused = pod.peer.attach(&wrong, OUT).err().unwrap();
    assert_eq!(refused.kind, ErrorKind::InvalidArgument);
    assert_eq!(pod.end(), 0);
}

#[test]
fn a_client_that_does_not_read_is_let_go_and_nothing_is_lost() {
    let mut pod = Pod::new();
    let script = "read x; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo \"line $i of a container\"; done";
    let spec = pod.with_stdin(script, |_| ());
    let mut stuck = pod.peer.attach(&spec, OUT).unwrap();
    let mut client = pod.peer.attach(&spec, ALL).unwrap();
    client.write("go\n");
    let output = client.output();
    assert_eq!(client.code(), 0);
    let expected: Vec<String> = (1..=20000).map(|n| format!("line {n} of a container")).collect();
    assert!(output.lines().eq(expected.iter()), "{} bytes", output.len());
    assert_eq!(pod.peer.exit().exit_code, 0);
    let logged = log(&spec);
    assert!(logged.iter().map(|line| line.strip_prefix("stdout F ").unwrap()).eq(expected.iter()));
    assert_eq!(stuck.told().unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "it learns that it was let go");
    assert!(stuck.output().len() < output.len());
    assert_eq!(pod.end(), 0);
}
