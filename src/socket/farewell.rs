//! The end of streams that carry no conversation: sockets that were not let in, and clients that were answered before
//! they had sent all.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::frames::{FrameAssembler, FrameLimits, IncomingMessage};
use super::{ANSWER, LINGER_SECONDS};
use crate::hub::stream::Stream;
use crate::protocol::error::Error;
use crate::protocol::event::Message;

/// Bytes of the largest message that is read past on the way to the close frame of a client that was not let in.
const MAX_REFUSED_BYTES: usize = 16 << 10;

/// How long, and for how many bytes, a client is listened to that was answered before it had sent all.
const LEFTOVER_TIME: Duration = Duration::from_secs(2);
/// Bytes that are discarded before the connection is reset.
const LEFTOVER_BYTES: usize = 8 << 20;

/// Tells a refused socket the reason, `pause` after the `answer` to its handshake, and closes it. The handshake was
/// answered with 101, since a browser shows a page nothing of a failed handshake but the code of a close frame.
pub async fn refuse(mut stream: Stream, answer: Bytes, error: Error, pause: Option<Duration>) {
    let mut why = Message::error(&error, None).bytes().to_vec();
    why.extend_from_slice(Message::close(error.code, &error.message).bytes());
    let farewell = async {
        stream.write_all(&answer).await?;
        stream.flush().await?;
        if let Some(pause) = pause {
            sleep(pause).await;
        }
        stream.write_all(&why).await?;
        stream.flush().await?;
        // Both ends of that wait are the same to us.
        let _ = timeout(ANSWER, closed(&mut stream)).await;
        stream.shutdown().await?;
        // Until the client ends its half, or the time is over.
        let mut scratch = [0; 512];
        while stream.read(&mut scratch).await? > 0 {}
        Ok::<(), std::io::Error>(())
    };
    // The client may not stay to read it.
    let _ = timeout(Duration::from_secs(LINGER_SECONDS.into()), farewell).await;
}

/// Reads until the client has closed, ended its half, or sent something unreadable. Other frames are skipped.
pub(super) async fn closed(stream: &mut Stream) -> std::io::Result<()> {
    let (mut frames, mut is_closed) = (FrameAssembler::default(), false);
    // Only the client's close frame counts, whatever was agreed on.
    let terms = FrameLimits { max: MAX_REFUSED_BYTES, inflates: true };
    let mut scratch = [0; 512];
    while !is_closed {
        let read = stream.read(&mut scratch).await?;
        let Some(bytes @ [_, ..]) = scratch.get_mut(..read) else { break };
        let heard = |incoming: IncomingMessage<'_>| {
            is_closed |= matches!(incoming, IncomingMessage::Close(_));
            true
        };
        if frames.feed(bytes, terms, heard).is_err() {
            // Bytes after that cannot be told from a close frame; the timeout decides.
            std::future::pending::<()>().await;
        }
    }
    Ok(())
}

/// Ends our half, and reads for a while what the client still sends. Closing a socket with unread bytes resets it,
/// and the client would lose the response. 2 s and 8 MiB at most: a client that sends without end is reset after
/// all.
pub async fn linger(stream: &mut Stream) {
    let mut left = LEFTOVER_BYTES;
    // On the heap, for few connections come to this and all would have to have room for it.
    let mut scratch = vec![0; 16 << 10];
    let ending = async {
        stream.shutdown().await?;
        while left > 0 {
            match stream.read(&mut scratch).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        Ok::<(), std::io::Error>(())
    };
    // The client may not stay to read it.
    let _ = timeout(LEFTOVER_TIME, ending).await;
}
