use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A TCP stream below TLS that makes one segment of what is written in one breath.
///
/// HTTP/2 flushes after each of its small frames, and TLS after each of its flights: each would be a
/// system call, a segment and a wake-up of the other side. Here a flush first lets the tasks that are
/// ready say what they have to, and then takes it all. Until [`Self::shaken`], a flush takes nothing:
/// what the handshake wrote leaves when it waits for the other side. Thus the end of a client's
/// handshake goes with its first request, as a browser sends it.
///
/// At most 16 KiB are held. What is longer goes straight on, after what is held.
pub(super) struct Gathered {
    stream: TcpStream,
    held: Vec<u8>,
    is_shaken: bool,
    /// A flush has let others go first.
    has_yielded: bool,
}

impl Gathered {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, held: Vec::new(), is_shaken: false, has_yielded: false }
    }

    /// The handshake is over: from now on a flush flushes.
    pub(super) fn shaken(&mut self) {
        self.is_shaken = true;
    }

    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sent = 0;
        let drained = loop {
            if sent == self.held.len() {
                break Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.stream).poll_write(context, &self.held[sent..]) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(length)) => sent += length,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.held.drain(..sent);
        drained
    }
}

impl AsyncRead for Gathered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_shaken
            && let Poll::Ready(Err(error)) = self.poll_drain(context)
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum::<usize>();
        if self.held.len() + length > MOST_HELD {
            ready!(self.poll_drain(context))?;
            if length > MOST_HELD {
                return Pin::new(&mut self.stream).poll_write_vectored(context, slices);
            }
        }
        slices.iter().for_each(|slice| self.held.extend_from_slice(slice));
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() || !self.is_shaken {
            return Poll::Ready(Ok(()));
        }
        if !self.has_yielded {
            self.has_yielded = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_drain(context))?;
        self.has_yielded = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Drop for Gathered {
    /// What TLS says when it fails, an alert, is not flushed: it would be lost with us.
    fn drop(&mut self) {
        if !self.held.is_empty() {
            // Nobody is left to wait until there is room.
            drop(self.poll_drain(&mut Context::from_waker(Waker::noop())));
        }
    }
}

/// A TLS record.
const MOST_HELD: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn what_a_handshake_wrote_leaves_when_it_waits_or_fails() {
        let (mut near, mut far) = pair().await;
        near.write_all(b"hello").await.unwrap();
        near.flush().await.unwrap();
        assert_eq!(near.held, b"hello");
        let answer = async {
            let mut said = [0; 5];
            far.read_exact(&mut said).await.unwrap();
            far.write_all(&said).await.unwrap();
        };
        let mut echo = [0; 5];
        let (heard, ()) = tokio::join!(near.read_exact(&mut echo), answer);
        heard.unwrap();
        assert_eq!((&echo, near.held.len()), (b"hello", 0));

        near.write_all(b"alert").await.unwrap();
        drop(near);
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"alert");
    }

    #[tokio::test]
    async fn a_flush_lets_others_go_first_and_then_takes_what_they_wrote() {
        let (mut near, mut far) = pair().await;
        near.shaken();
        near.write_all(b"one ").await.unwrap();
        let first = poll_fn(|context| Poll::Ready(Pin::new(&mut near).poll_flush(context))).await;
        assert!(first.is_pending());
        near.write_all(b"breath").await.unwrap();
        assert_eq!(near.held, b"one breath");
        near.flush().await.unwrap();
        assert!(near.held.is_empty());
        let mut said = [0; 10];
        far.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"one breath");
    }

    #[tokio::test]
    async fn order_is_kept_and_no_more_is_held_than_a_record_whatever_the_lengths() {
        let (mut near, mut far) = pair().await;
        near.shaken();
        let lengths = [1, 5, MOST_HELD - 6, 1, MOST_HELD, MOST_HELD + 1, 70_000, 3];
        let sent: Vec<u8> = (0..lengths.iter().sum()).map(|at| (at % 251) as u8).collect();
        let expected = sent.clone();
        let send = async move {
            let mut rest = &sent[..];
            for length in lengths {
                let (piece, after) = rest.split_at(length);
                near.write_all(piece).await.unwrap();
                assert!(near.held.len() <= MOST_HELD);
                rest = after;
            }
            near.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (read, ()) = tokio::join!(far.read_to_end(&mut received), send);
        read.unwrap();
        assert_eq!(received, expected);
    }

    async fn pair() -> (Gathered, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        (Gathered::new(near), far)
    }
}
