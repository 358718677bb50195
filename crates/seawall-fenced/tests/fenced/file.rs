//! Files, written by processes that are killed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use seawall_fenced::{CheckError, FencedFile, FileError};

use super::{fence, is_stale};

const SOON: Duration = Duration::from_secs(60);
/// Says to this very program that it is a writer, and what it writes: file, first token, step.
const WRITER: &str = "FENCED_WRITER";
/// Enough that a write takes a while.
const SIZE: usize = 300_000;

fn content(token: u64) -> Vec<u8> {
    let mut content = format!("{token}\n").into_bytes();
    content.resize(SIZE, b'0' + (token % 10) as u8);
    content
}

/// The token that the file was written by. It is whole, or this fails.
fn token_in(content: &[u8]) -> u64 {
    let end = content.iter().position(|byte| *byte == b'\n').unwrap();
    let token = str::from_utf8(&content[..end]).unwrap().parse().unwrap();
    assert!(content == self::content(token), "half of a write");
    token
}

/// No test: what the tests start as processes of their own.
#[test]
fn writer() {
    let Ok(order) = std::env::var(WRITER) else { return };
    let [path, first, step] = order.split('|').collect::<Vec<_>>()[..] else { panic!("{order}") };
    let (file, mut token, step) =
        (FencedFile::new(path).patience(SOON), first.parse::<u64>().unwrap(), step.parse::<u64>().unwrap());
    loop {
        match file.write(fence(token), &content(token)) {
            Ok(()) => println!("\nwritten {token}"),
            Err(error) => println!("\nstale {}", error.stale().unwrap().seen),
        }
        token += step;
    }
}

struct Writer(Child);

impl Writer {
    fn start(path: &Path, first: u64, step: u64) -> (Self, impl Iterator<Item = (String, u64)> + use<>) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "file::writer", "--nocapture"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.env(WRITER, format!("{}|{first}|{step}", path.display())).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let said = lines.filter_map(|line| {
            let (word, token) = line.split_once(' ')?;
            ["written", "stale"].contains(&word).then(|| (word.to_owned(), token.parse().unwrap()))
        });
        (Self(child), said)
    }

    fn kill9(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_smaller_token_is_refused_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.txt");
    let file = FencedFile::new(&path);
    assert_eq!(file.highest().unwrap(), None);
    file.write(fence(7), b"seven").unwrap();
    file.update(fence(7), |old| [&old.unwrap()[..], b" again"].concat()).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"seven again");
    file.check(fence(9)).unwrap();
    let file = FencedFile::new(&path);
    is_stale(file.write(fence(8), b"eight"), 9, 8);
    is_stale(file.check(fence(8)), 9, 8);
    assert_eq!((std::fs::read(&path).unwrap(), file.highest().unwrap()), (b"seven again".into(), Some(fence(9))));
    file.write(fence(9), b"nine").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"nine");
}

#[test]
fn its_permissions_stay() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    std::fs::write(&path, "old").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    FencedFile::new(&path).write(fence(1), b"new").unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_goes_wrong_is_said_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let file = FencedFile::new(&path).patience(Duration::from_millis(50));
    file.write(fence(5), b"five").unwrap();
    for bad in ["", "x\n", "-1\n", "5", "9007199254740992\n"] {
        std::fs::write(dir.path().join("a.fence"), bad).unwrap();
        let error = file.write(fence(6), b"six").unwrap_err();
        assert!(matches!(error, CheckError::Failed { source: FileError::Damaged { .. }, .. }), "{bad:?}: {error}");
        assert!(error.to_string().contains("a.fence holds no fencing token"), "{error}");
    }
    std::fs::write(dir.path().join("a.fence"), "5\n").unwrap();
    let held = std::fs::File::open(dir.path().join("a.lock")).unwrap();
    held.lock().unwrap();
    let error = file.write(fence(6), b"six").unwrap_err();
    assert!(matches!(error, CheckError::Failed { source: FileError::Busy { .. }, .. }), "{error}");
    drop(held);
    assert!(matches!(file.write(fence(u64::MAX), b""), Err(CheckError::Invalid(_))));
    assert!(matches!(FencedFile::new("/").write(fence(1), b""), Err(CheckError::Invalid(_))));
    let nowhere = FencedFile::new(dir.path().join("none/a")).write(fence(1), b"").unwrap_err();
    assert!(matches!(nowhere, CheckError::Failed { source: FileError::Io { .. }, .. }), "{nowhere}");
    assert_eq!(std::fs::read(&path).unwrap(), b"five");
    file.write(fence(6), b"six").unwrap();
}

/// Half a write would be seen as such, a token that is smaller than the content's would let a former holder in.
#[test]
fn a_writer_that_is_killed_leaves_the_old_content_or_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let file = FencedFile::new(&path);
    let mut next = 1;
    let mut inside = 0;
    for round in 0..30 {
        let (writer, mut said) = Writer::start(&path, next, 1);
        let (_, first) = said.next().unwrap();
        assert_eq!(first, next, "whatever the one before was doing, this one goes on at once");
        // In the middle of one of the writes that follow.
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..20_000)));
        writer.kill9();
        let acknowledged = said.last().map_or(first, |(_, token)| token);
        let found = token_in(&std::fs::read(&path).unwrap());
        let seen = file.highest().unwrap().unwrap().get();
        assert!(acknowledged <= found && found <= seen && seen <= acknowledged + 1, "{acknowledged} {found} {seen}");
        is_stale(file.write(fence(seen - 1), b"late"), seen, seen - 1);
        inside += usize::from(found < seen || files(dir.path()).len() > 3);
        next = seen + 1;
        if round > 10 && inside > 2 {
            break;
        }
    }
    assert!(inside > 0, "no writer was killed within a write: this has shown nothing");
    assert!(files(dir.path()).len() <= 5, "{:?}", files(dir.path()));
}

#[test]
fn of_two_processes_the_larger_token_wins() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let (even, even_said) = Writer::start(&path, 2, 2);
    let (odd, odd_said) = Writer::start(&path, 1, 2);
    let readers = [even_said, odd_said].map(|said| {
        std::thread::spawn(move || {
            said.fold((0, 0), |(w, s), (word, _)| if word == "written" { (w + 1, s) } else { (w, s + 1) })
        })
    });
    let end = Instant::now() + SOON;
    let (mut last, mut changes) = (0, 0);
    while changes < 40 {
        assert!(Instant::now() < end, "only {changes} writes");
        if let Ok(content) = std::fs::read(&path) {
            let token = token_in(&content);
            assert!(token >= last, "{token} was written over {last}");
            changes += usize::from(token > last);
            last = token;
        }
    }
    even.kill9();
    odd.kill9();
    let counts = readers.map(|reader| reader.join().unwrap());
    assert!(counts.iter().all(|(written, stale)| written + stale > 0), "{counts:?}");
    let seen = FencedFile::new(&path).highest().unwrap().unwrap().get();
    assert!(token_in(&std::fs::read(&path).unwrap()) <= seen);
}
