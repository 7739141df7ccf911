//! The hand-over: starts a process of the same program, maybe a newer version, with this one's listeners. The sockets'
//! listener is its standard input, and a line on its standard output says that it serves; until then this process
//! continues unchanged. If the API has its own listener, the standard output is a Unix socket that carries it.

use std::fmt;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read as _, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use fanfare::server::PassedListeners;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use tokio::sync::oneshot;

/// A successor writes this line once it serves.
const SERVING: &str = "serving";

/// The variable by which a successor knows that the API's listener waits for it.
const API_WAITS: &str = "API_LISTENER_WAITS";

/// The variable that tells a successor that it is the only process with the listener.
const ALONE: &str = "LISTENER_IS_YOURS";

/// The variable that tells a successor that it will receive the state of resumable clients once it serves.
const CLIENTS_FOLLOW: &str = "CLIENTS_FOLLOW";

/// Whether the previous process sends the state of resumable clients.
pub(crate) fn clients_follow() -> bool {
    std::env::var_os(CLIENTS_FOLLOW).is_some()
}

/// The stream on which the previous process sends that state, after it has read that this one serves.
pub(crate) fn predecessor_line() -> io::Result<UnixStream> {
    io::stdout().as_fd().try_clone_to_owned().map(UnixStream::from)
}

/// Whether this process alone has the inherited listener: the previous one created it and has ended.
pub(crate) fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// The listener of the process before, where there was one: any listening socket that is the standard
/// input, as inetd and systemd pass one, too.
pub(crate) fn inherited() -> io::Result<Option<OwnedFd>> {
    let stdin = io::stdin();
    if !sockopt::socket_acceptconn(&stdin).unwrap_or(false) {
        return Ok(None);
    }
    stdin.as_fd().try_clone_to_owned().map(Some)
}

/// The API's listener of the process before, where that had one.
pub(crate) fn inherited_api() -> io::Result<Option<OwnedFd>> {
    if std::env::var_os(API_WAITS).is_none() {
        return Ok(None);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        io::stdout(),
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let passed = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut listeners) => listeners.next(),
        _ => None,
    });
    passed.map(Some).ok_or_else(|| io::Error::other("the API's listener was not passed on"))
}

/// Puts the API's listener where a successor finds it.
fn pass_on(api: &OwnedFd, line: &UnixStream) -> io::Result<()> {
    let listeners = [api.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&listeners)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    sendmsg(line, &[IoSlice::new(&[0])], &mut control, SendFlags::empty())?;
    Ok(())
}

/// Says that this process serves, to the one before.
pub(crate) fn notify_predecessor() {
    // The previous process may have ended. Nobody else reads this line.
    let _ = writeln!(io::stdout(), "{SERVING}");
}

/// A process that has been started to go on.
pub(crate) struct Successor {
    /// The successor's process id, which systemd is given as the main one.
    pub(crate) pid: u32,
    /// Resolves once the successor serves, with the stream to it, or has failed.
    serves: oneshot::Receiver<Result<UnixStream, HandoverError>>,
}

/// Why it does not.
#[derive(Debug)]
pub(crate) struct HandoverError(String);

impl fmt::Display for HandoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Successor {
    /// Starts the program again with the same arguments and the listeners `passed`. With `alone` no other process
    /// has them.
    ///
    /// # Errors
    /// The program cannot be started under the name by which this one was started.
    pub(crate) fn start_successor(passed: PassedListeners, alone: bool) -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        // By the name it was called by, not by what runs now: that file may have been replaced.
        let program = arguments.next().ok_or(io::ErrorKind::NotFound)?;
        let (ours, theirs) = UnixStream::pair()?;
        if let Some(api) = &passed.api {
            pass_on(api, &ours)?;
        }
        let mut child = Command::new(program)
            .args(arguments)
            .env_remove(ALONE)
            .envs(alone.then_some((ALONE, "yes")))
            .env_remove(API_WAITS)
            .envs(passed.api.is_some().then_some((API_WAITS, "yes")))
            .env(CLIENTS_FOLLOW, "yes")
            .env_remove("WATCHDOG_PID")
            .stdin(passed.sockets.map_or_else(Stdio::null, Stdio::from))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .spawn()?;
        let pid = child.id();
        let (tell, serves) = oneshot::channel();
        std::thread::Builder::new().name("successor".to_owned()).spawn(move || {
            // The receiver is gone if the process stops meanwhile; then nobody needs the result.
            let _ = tell.send(read_ready(&mut child, ours));
        })?;
        Ok(Self { pid, serves })
    }

    /// Ready once it serves, with the stream to it, or has ended instead.
    pub(crate) async fn wait_serving(&mut self) -> Result<UnixStream, HandoverError> {
        let heard = (&mut self.serves).await;
        heard.unwrap_or_else(|_| Err(HandoverError("nothing was heard of it".to_owned())))
    }
}

/// Waits for the line that the successor writes once it serves.
/// # Errors
/// The successor ends, or closes the stream, before it serves.
fn read_ready(child: &mut Child, line: UnixStream) -> Result<UnixStream, HandoverError> {
    let mut reader = BufReader::new(line);
    if reader.by_ref().lines().map_while(Result::ok).any(|line| line == SERVING) {
        return Ok(reader.into_inner());
    }
    // It has closed its output without a word, so it has ended or is about to.
    match child.wait() {
        Ok(status) => Err(HandoverError(format!("it ended with {status}"))),
        Err(error) => Err(HandoverError(error.to_string())),
    }
}
