//! Writes to many sockets in one system call, by io_uring (Linux 6.1 or newer). `flush.rs` decides which sockets are
//! written to, and what an outcome means to a connection.
//!
//! # Why the unsafe code here is sound
//! This is the only module with unsafe code; everywhere else the compiler denies it. The danger of a
//! ring is that the kernel reads memory by address, at a time of its choosing. Here that time is one call:
//!
//! 1. [`Ring::send_all`] borrows sockets and bytes, and neither returns nor unwinds before the kernel has
//!    answered every request that it took. So they outlive every read of theirs.
//! 2. Lists of pieces (`iovec`, `msghdr`) are the ring's own. They are complete before the first address is
//!    taken of them, and are next touched by the next call.
//! 3. Between the first request that is queued and the last answer runs only code of this module and of the
//!    `io-uring` crate, none of which panics. If the kernel will not say what became of a request it took,
//!    the process is aborted: that is the one way left to be sure that nothing is read after it was freed.
//! 4. Requests that the kernel did not take lie in the queue with addresses that may dangle. Only a later
//!    submission could make the kernel look at them, and there is none: the ring is marked broken.
//! 5. Nothing is registered with the ring, there is no polling thread, and the ring stays on its thread.
//!
//! One call has nothing to do with rings and is here so that no other module has unsafe code: [`give_back_memory`].
//!
//! Each request has `MSG_DONTWAIT`. So a full socket is answered `EAGAIN` at once: the kernel neither arms a
//! poll nor hands the request to a thread of its own, and the call does not wait for anybody's network.
#![expect(
    unsafe_code,
    reason = "the kernel is given addresses; the module's text says why that is sound"
)]

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use io_uring::{IoUring, opcode, squeue, types};

use super::outbox::Outbox;

/// Gives the system back what the allocator keeps of memory that was freed. glibc keeps all of it that lies below anything
/// still in use, for ever. Each of its arenas is locked for the milliseconds that this takes, so it is for a moment
/// after much was freed. Other allocators give memory back by themselves.
pub fn give_back_memory() {
    // SAFETY: takes no addresses; it locks what it looks through, and frees nothing that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Sockets that one system call writes to.
pub const MAX_SENDS: usize = 256;

/// How often a submission may fail with nothing under way before the ring is given up.
const MAX_FAILURES: u32 = 16;

/// The bytes that one socket is to be sent. No socket may stand twice in one call: if it refused the first, it might
/// take the second.
#[derive(Debug)]
pub struct RingWrite<'a> {
    pub socket: BorrowedFd<'a>,
    pub bytes: RingPayload<'a>,
}

/// The bytes, in one piece or in as many as are queued.
#[derive(Clone, Copy, Debug)]
pub enum RingPayload<'a> {
    One(&'a [u8]),
    Queued(&'a Outbox),
}

/// A worker's ring.
pub struct Ring {
    ring: IoUring,
    /// One for each socket that is written to in a call.
    requests: Vec<squeue::Entry>,
    /// Kept from call to call, and pointed at by the kernel until a call is over.
    headers: Vec<libc::msghdr>,
    /// As many as all payloads of a call have pieces.
    slices: Vec<libc::iovec>,
    /// By place, what [`Self::send_all`] found.
    answers: Vec<i32>,
    /// The kernel refused a call: sockets are written to by themselves from then on.
    broken: bool,
    /// The kernel takes requests only from the thread that made the ring.
    thread: PhantomData<*const ()>,
}

impl Ring {
    /// A ring for the thread that calls this.
    ///
    /// # Errors
    /// Where none can be had: seccomp or `kernel.io_uring_disabled` (`EPERM`), an old kernel (`EINVAL`), one
    /// without io_uring (`ENOSYS`); or where a trial does not end as it should.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            // Completions are worked off in the call that waits for them, not by interrupting this
            // thread.
            .setup_defer_taskrun()
            // A request that is refused does not keep those behind it from being taken.
            .setup_submit_all()
            .build(MAX_SENDS as u32)?;
        let mut ring = Self {
            ring,
            requests: Vec::with_capacity(MAX_SENDS),
            headers: Vec::new(),
            slices: Vec::new(),
            answers: Vec::with_capacity(MAX_SENDS),
            broken: false,
            thread: PhantomData,
        };
        ring.try_out()?;
        Ok(ring)
    }

    /// Sends a byte to itself, for there are sandboxes that set a ring up and then refuse what it is for.
    fn try_out(&mut self) -> io::Result<()> {
        let (near, mut far) = UnixStream::pair()?;
        far.set_nonblocking(true)?;
        self.send_all(&[RingWrite { socket: near.as_fd(), bytes: RingPayload::One(b"?") }])?;
        self.write_results().next().unwrap_or_else(|| Err(ErrorKind::Other.into()))?;
        far.read_exact(&mut [0])
    }

    /// Sends to all of them what their sockets take at once. How that went is in [`Self::write_results`].
    ///
    /// # Errors
    /// The ring can no longer be used. A write that was not sent is answered [`ErrorKind::WouldBlock`].
    pub fn send_all(&mut self, sends: &[RingWrite<'_>]) -> io::Result<()> {
        self.answers.clear();
        self.answers.resize(sends.len(), -libc::EAGAIN);
        let mut done = Ok(());
        for (part, some) in sends.chunks(MAX_SENDS).enumerate() {
            if !self.broken {
                self.prepare_writes(some, part * MAX_SENDS);
                done = self.submit_and_wait();
                self.broken = done.is_err();
            }
        }
        done
    }

    /// Of each that was to be sent to, in their order: the bytes that its socket took, or why it took none.
    pub fn write_results(&self) -> impl Iterator<Item = io::Result<usize>> {
        self.answers.iter().map(|answer| match *answer {
            // What the kernel had no memory for, or dropped, may go by the plain path.
            refusal if NOT_TRIED.contains(&-refusal) => Err(ErrorKind::WouldBlock.into()),
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            taken => Ok(taken as usize),
        })
    }

    /// Makes requests of `sends`; nothing is queued yet. Their places are counted from `first`.
    fn prepare_writes(&mut self, sends: &[RingWrite<'_>], first: usize) {
        self.slices.clear();
        self.headers.clear();
        self.requests.clear();
        // All pieces first: no list may grow once somebody has its address.
        for send in sends {
            match send.bytes {
                RingPayload::One(bytes) => self.slices.push(io_vector(bytes)),
                RingPayload::Queued(outbox) => {
                    self.slices
                        .extend(outbox.iter().take(Outbox::SLICES).map(|one| io_vector(one)));
                }
            }
        }
        self.headers.reserve(sends.len());
        let mut rest = self.slices.as_mut_slice();
        for (place, send) in (first..).zip(sends) {
            let count = match send.bytes {
                RingPayload::One(_) => 1,
                RingPayload::Queued(outbox) => outbox.iter().take(Outbox::SLICES).count(),
            };
            let (own, others) = rest.split_at_mut(count);
            rest = others;
            let socket = types::Fd(send.socket.as_raw_fd());
            // A socket whose other end is gone answers `EPIPE`; SIGPIPE would end the process.
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            let request = if let [only] = own {
                let length = u32::try_from(only.iov_len).unwrap_or(u32::MAX);
                opcode::Send::new(socket, only.iov_base.cast(), length).flags(flags).build()
            } else {
                // SAFETY: null pointers and zeros are a valid message: one to nobody, of nothing.
                let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
                header.msg_iov = own.as_mut_ptr();
                header.msg_iovlen = own.len() as _;
                self.headers.push(header);
                let header = self.headers.last().map_or(std::ptr::null(), std::ptr::from_ref);
                opcode::SendMsg::new(socket, header).flags(flags as u32).build()
            };
            self.requests.push(request.user_data(place as u64));
        }
    }

    /// Hands the kernel what was prepared, and waits for all answers.
    fn submit_and_wait(&mut self) -> io::Result<()> {
        // SAFETY: what the requests point to is borrowed by `send_all`, or its own, until all those that the
        // kernel takes are answered, below; see the module's text. The queue has room for `MAX_SENDS`.
        if unsafe { self.ring.submission().push_multiple(&self.requests) }.is_err() {
            return Err(io::Error::other("the ring has no room"));
        }
        let (mut taken, mut answered, mut failures) = (0, 0, 0);
        while answered < self.requests.len() {
            // Where not all are taken, this does not wait for the others.
            match self.ring.submit_and_wait(self.requests.len() - answered) {
                Ok(now) => taken += now,
                Err(error) => {
                    let passes = matches!(
                        error.raw_os_error(),
                        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
                    );
                    failures += 1;
                    if taken == answered && (!passes || failures > MAX_FAILURES) {
                        return Err(error);
                    }
                    if !passes {
                        // The kernel may still read what would be freed.
                        std::process::abort();
                    }
                }
            }
            for answer in self.ring.completion() {
                answered += 1;
                if let Some(place) = self.answers.get_mut(answer.user_data() as usize) {
                    *place = answer.result();
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("broken", &self.broken).finish_non_exhaustive()
    }
}

/// Answers that are about the request, not about its socket: the bytes stay queued, and the plain
/// path tells what is wrong if it is something lasting.
const NOT_TRIED: [i32; 6] =
    [libc::EAGAIN, libc::EINTR, libc::ECANCELED, libc::ENOMEM, libc::ENOBUFS, libc::EINVAL];

fn io_vector(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use bytes::Bytes;
    use socket2::SockRef;

    use super::*;

    /// A ring, where the machine that tests lets one be had.
    fn ring() -> Option<Ring> {
        let ring = Ring::new();
        if let Err(error) = &ring {
            #[expect(clippy::print_stderr, reason = "what was not tested is said")]
            let () = eprintln!("no io_uring here, so nothing was tested of it: {error}");
        }
        ring.ok()
    }

    fn pair() -> (UnixStream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        (near, far)
    }

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        near.set_nonblocking(true).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn one<'a>(socket: &'a impl AsFd, bytes: &'a [u8]) -> RingWrite<'a> {
        RingWrite { socket: socket.as_fd(), bytes: RingPayload::One(bytes) }
    }

    /// The result of each send: bytes that were taken, or the kind of error.
    fn send(ring: &mut Ring, sends: &[RingWrite<'_>]) -> Vec<Result<usize, ErrorKind>> {
        ring.send_all(sends).unwrap();
        ring.write_results().map(|answer| answer.map_err(|error| error.kind())).collect()
    }

    fn heard(mut far: impl Read, bytes: usize) -> Vec<u8> {
        let mut all = vec![0; bytes];
        far.read_exact(&mut all).unwrap();
        all
    }

    #[test]
    fn many_sockets_get_each_its_own_bytes() {
        let Some(mut ring) = ring() else { return };
        let sockets: Vec<_> = (0..2 * MAX_SENDS + 7).map(|_| pair()).collect();
        for round in 0..3 {
            let texts: Vec<_> = (0..sockets.len()).map(|n| format!("{round}:{n:05}")).collect();
            let sends: Vec<_> = sockets
                .iter()
                .zip(&texts)
                .map(|((near, _), text)| one(near, text.as_bytes()))
                .collect();
            assert_eq!(send(&mut ring, &sends), vec![Ok(7); sockets.len()]);
            for ((_, far), text) in sockets.iter().zip(&texts) {
                assert_eq!(heard(far, 7), text.as_bytes());
            }
        }
    }

    #[test]
    fn queued_pieces_arrive_in_their_order_as_many_as_one_call_takes() {
        let Some(mut ring) = ring() else { return };
        let outboxes: Vec<Outbox> = [1, 2, Outbox::SLICES, Outbox::SLICES + 9]
            .map(|pieces| {
                let mut outbox = Outbox::default();
                (0..pieces).for_each(|n| outbox.push(Bytes::from(format!("<{n:03}>"))));
                outbox
            })
            .into();
        let sockets: Vec<_> = outboxes.iter().map(|_| pair()).collect();
        let sends: Vec<_> = outboxes
            .iter()
            .zip(&sockets)
            .map(|(outbox, (near, _))| RingWrite {
                socket: near.as_fd(),
                bytes: RingPayload::Queued(outbox),
            })
            .collect();
        let taken = [5, 10, 5 * Outbox::SLICES, 5 * Outbox::SLICES];
        assert_eq!(send(&mut ring, &sends), taken.map(Ok));
        for ((_, far), taken) in sockets.iter().zip(taken) {
            let expected: String = (0..taken / 5).map(|n| format!("<{n:03}>")).collect();
            assert_eq!(heard(far, taken), expected.as_bytes());
        }
    }

    #[test]
    fn a_full_socket_is_answered_at_once_and_holds_up_nobody() {
        let Some(mut ring) = ring() else { return };
        for blocking in [false, true] {
            let (full, idle) = (tcp_pair(), tcp_pair());
            full.0.set_nonblocking(!blocking).unwrap();
            let large = vec![7; 64 << 20];
            // More than any buffer holds: a part is taken, and then nothing.
            let first = send(&mut ring, &[one(&full.0, &large), one(&idle.0, b"x")]);
            let taken = first[0].unwrap();
            assert!(taken > 0 && taken < large.len(), "{taken} bytes");
            let mut all = taken;
            let refused = loop {
                match send(&mut ring, &[one(&full.0, &large), one(&idle.0, b"y")])[..] {
                    [Ok(taken), Ok(1)] => all += taken,
                    ref answers => break answers.to_vec(),
                }
            };
            assert_eq!(refused, [Err(ErrorKind::WouldBlock), Ok(1)]);
            // Nothing went that was not answered for.
            drop(full.0);
            let mut rest = Vec::new();
            (&full.1).read_to_end(&mut rest).unwrap();
            assert_eq!(rest.len(), all);
        }
    }

    #[test]
    fn sockets_that_are_closed_or_reset_are_told_apart_from_those_that_live() {
        let Some(mut ring) = ring() else { return };
        let (closed, reset, lives) = (pair(), tcp_pair(), tcp_pair());
        let sends = [one(&closed.0, b"1"), one(&reset.0, b"2"), one(&lives.0, b"3")];
        assert_eq!(send(&mut ring, &sends), [Ok(1); 3]);
        drop(closed.1);
        SockRef::from(&reset.1).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(reset.1);
        // A reset over loopback has arrived when the call that sent it returns; the first write is told.
        let again = [one(&closed.0, b"1"), one(&reset.0, b"2"), one(&lives.0, b"3")];
        let answers = send(&mut ring, &again);
        assert_eq!(answers[0], Err(ErrorKind::BrokenPipe));
        assert!(
            matches!(answers[1], Err(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)),
            "{answers:?}"
        );
        assert_eq!(answers[2], Ok(1));
        assert_eq!(heard(&lives.1, 2), b"33");
    }

    #[test]
    fn what_is_no_socket_is_refused_and_the_ring_goes_on() {
        let Some(mut ring) = ring() else { return };
        let (file, lives) = (std::fs::File::open("/dev/null").unwrap(), pair());
        let answers = send(&mut ring, &[one(&file, b"1"), one(&lives.0, b"2")]);
        assert!(answers[0].is_err() && answers[1] == Ok(1), "{answers:?}");
        assert_eq!(send(&mut ring, &[]), []);
        (&lives.0).write_all(b"3").unwrap();
        assert_eq!(heard(&lives.1, 2), b"23");
    }
}
