//! From a socket to a session: TLS, startup, authentication; and the same for a cancel request.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{NoTls, TlsConnect};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, Connection};

use crate::connector::{ConnectError, Place};
use crate::socket::{Ending, Socket};
use crate::wire::{Mark, Tap, WireState};

/// What there is after a login.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) client: Client,
    pub(crate) wire: Arc<WireState>,
    pub(crate) ending: Ending,
    pub(crate) task: AbortHandle,
}

/// How TLS is done, if at all.
#[derive(Clone)]
pub(crate) enum Tls {
    /// Not set up.
    None,
    #[cfg(feature = "tls")]
    Rustls(tokio_postgres_rustls::MakeRustlsConnect),
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            #[cfg(feature = "tls")]
            Self::Rustls(_) => "Rustls",
        })
    }
}

impl Tls {
    #[cfg(feature = "tls")]
    pub(crate) fn new(config: Option<rustls::ClientConfig>) -> Self {
        config
            .map_or(Self::None, |config| Self::Rustls(tokio_postgres_rustls::MakeRustlsConnect::new(config)))
    }

    #[cfg(not(feature = "tls"))]
    pub(crate) const fn new() -> Self {
        Self::None
    }
}

/// Logs in to any host of a pool.
#[derive(Debug)]
pub(crate) struct Login {
    config: Config,
    tls: Tls,
}

impl Login {
    pub(crate) const fn new(config: Config, tls: Tls) -> Self {
        Self { config, tls }
    }

    /// # Cancel safety
    /// Dropping it closes the socket.
    pub(crate) async fn log_in(
        &self,
        place: &Place,
        socket: Socket,
        ending: Ending,
    ) -> Result<Raw, ConnectError> {
        let wire = Arc::new(WireState::default());
        let stream = Tap::over_socket(socket, Arc::clone(&wire));
        match self.tls_for(place)? {
            Choice::Plain => self.start(stream, NoTls, wire, ending, SslMode::Disable).await,
            #[cfg(feature = "tls")]
            Choice::Tls(connect) => {
                let tls = tapped::Tapped { connect, wire: Arc::clone(&wire) };
                self.start(stream, tls, wire, ending, self.config.get_ssl_mode()).await
            }
        }
    }

    async fn start<T>(
        &self,
        stream: Tap<Socket>,
        tls: T,
        wire: Arc<WireState>,
        ending: Ending,
        mode: SslMode,
    ) -> Result<Raw, ConnectError>
    where
        T: TlsConnect<Tap<Socket>>,
        T::Stream: Send + 'static,
    {
        let mut config = self.config.clone();
        config.ssl_mode(mode);
        let (client, connection) = config.connect_raw(stream, tls).await.map_err(ConnectError::Login)?;
        let task = tokio::spawn(drive(connection, Arc::clone(&wire))).abort_handle();
        Ok(Raw { client, wire, ending, task })
    }

    /// Sends the request and reads to the end.
    ///
    /// # Cancel safety
    /// Dropping it closes the socket; the request may have been sent.
    pub(crate) async fn cancel(&self, place: &Place, socket: Socket, token: &CancelToken) -> io::Result<()> {
        let socket = Shared(Arc::new(Mutex::new(socket)));
        let sent = match self.tls_for(place).map_err(io::Error::other)? {
            Choice::Plain => token.cancel_query_raw(socket.clone(), NoTls).await,
            #[cfg(feature = "tls")]
            Choice::Tls(connect) => token.cancel_query_raw(socket.clone(), connect).await,
        };
        sent.map_err(io::Error::other)?;
        // The server closes after the signal was sent. What it says before, if anything, does not matter.
        let mut rest = [0; 64];
        let mut socket = socket;
        while socket.read(&mut rest).await.unwrap_or(0) > 0 {}
        Ok(())
    }

    fn tls_for(&self, place: &Place) -> Result<Choice, ConnectError> {
        match (&self.tls, self.config.get_ssl_mode(), place) {
            // As in libpq, TLS is not for unix sockets.
            (_, SslMode::Disable, _) | (_, _, Place::Unix(_)) | (Tls::None, SslMode::Prefer, _) => {
                Ok(Choice::Plain)
            }
            (Tls::None, _, _) => Err(ConnectError::NoTls),
            #[cfg(feature = "tls")]
            (Tls::Rustls(make), _, Place::Name { host, .. } | Place::Address { host, .. }) => {
                use tokio_postgres::tls::MakeTlsConnect;
                let mut make = make.clone();
                let made = MakeTlsConnect::<Tap<Socket>>::make_tls_connect(&mut make, host);
                made.map(Choice::Tls).map_err(|_| ConnectError::NoTls)
            }
        }
    }
}

enum Choice {
    Plain,
    #[cfg(feature = "tls")]
    Tls(<tokio_postgres_rustls::MakeRustlsConnect as tokio_postgres::tls::MakeTlsConnect<Tap<Socket>>>::TlsConnect),
}

/// Moves the bytes of a connection until it ends; looks at notices on the way.
async fn drive<T>(mut connection: Connection<Tap<Socket>, T>, wire: Arc<WireState>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(AsyncMessage::Notice(notice))) => {
                if notice.routine() == Some("SyncRepWaitForLSN") {
                    wire.mark(Mark::Unreplicated);
                }
                tracing::debug!(code = notice.code().code(), "notice of the server");
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                // Whoever waits for an answer is told by the driver.
                tracing::debug!(error = %error, "connection ended");
                return;
            }
            None => return,
        }
    }
}

/// A socket with two owners: the driver closes its own when the request is sent, and we go on reading.
#[derive(Clone)]
struct Shared(Arc<Mutex<Socket>>);

impl Shared {
    fn with<R>(&self, use_it: impl FnOnce(Pin<&mut Socket>) -> R) -> R {
        // Both owners are of one task: the lock is never contended.
        use_it(Pin::new(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl AsyncRead for Shared {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| socket.poll_read(cx, buf))
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|socket| socket.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| socket.poll_flush(cx))
    }

    /// Half of it would tell a TLS terminator that we are gone; the server closes by itself.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(feature = "tls")]
mod tapped {
    //! Puts a [`Tap`] on top of TLS.

    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;

    use tokio_postgres::tls::TlsConnect;

    use crate::socket::Socket;
    use crate::wire::{Tap, WireState};

    pub(super) struct Tapped<T> {
        pub(super) connect: T,
        pub(super) wire: Arc<WireState>,
    }

    impl<T> TlsConnect<Tap<Socket>> for Tapped<T>
    where
        T: TlsConnect<Tap<Socket>>,
        T::Future: Send + 'static,
    {
        type Stream = Tap<T::Stream>;
        type Error = T::Error;
        // Once per connect, next to a handshake: a box costs nothing here.
        type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, Self::Error>> + Send>>;

        fn connect(self, stream: Tap<Socket>) -> Self::Future {
            let Self { connect, wire } = self;
            let connecting = connect.connect(stream);
            Box::pin(async move { Ok(Tap::over_tls(connecting.await?, wire)) })
        }
    }
}
