//! Serves what a buslane program counts, over HTTP: metrics, and health.
//!
//! Whoever can connect may ask, so nothing that a client does, or leaves undone, may cost more than its own connection: a connection has one
//! request, whose body is not read, and an end.
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::TcpStream;
//!
//! use buslane_metrics::{Http, Page};
//!
//! let http = Http::serve("127.0.0.1:0".parse()?, |path| match path {
//!     "/metrics" => Page::metrics(String::from("# EOF\n")),
//!     _ => Page::missing("There is /metrics.\n"),
//! })?;
//!
//! let mut stream = TcpStream::connect(http.address())?;
//! stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
//! let mut answer = String::new();
//! stream.read_to_string(&mut answer)?;
//! assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"));
//! assert!(answer.ends_with("\r\n\r\n# EOF\n"));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

use std::net::{self, SocketAddr};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{error, io};

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::sync::{Semaphore, oneshot};
use tokio::task;
use tokio::time::{sleep, timeout};

/// How many are connected at a time; others wait in the system's queue.
const CONNECTIONS: usize = 64;
/// How long a request's head may take to come.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may last.
const CONNECTION: Duration = Duration::from_secs(30);
/// How many pages are made at a time: each takes milliseconds.
const PAGES: usize = 4;
/// The rest after a connection that could not be accepted, as when there are too many open files.
const REST: Duration = Duration::from_millis(100);

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The status, as 200.
    pub status: u16,
    /// The type of the text, as `text/plain`.
    pub kind: &'static str,
    /// The text.
    pub text: String,
}

impl Page {
    /// Metrics, in the text format of OpenMetrics, which Prometheus reads.
    #[must_use]
    pub fn metrics(text: String) -> Self {
        Self {
            status: 200,
            kind: "application/openmetrics-text; version=1.0.0; charset=utf-8",
            text,
        }
    }

    /// That there is no such page, and which there are.
    #[must_use]
    pub fn missing(text: &str) -> Self {
        Self {
            status: 404,
            kind: "text/plain",
            text: text.to_owned(),
        }
    }
}

/// Makes the page at a path.
type Pages = dyn Fn(&str) -> Page + Send + Sync;

/// A server, until it is dropped.
pub struct Http {
    address: SocketAddr,
    // Dropped, it ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Http {
    /// Serves pages at this address, until it is dropped: each is made for who asks for its path, and may take a while.
    ///
    /// Dropping it closes the connections as they are. A page that is being made then is not waited for: what the closure holds is
    /// dropped when it is done.
    ///
    /// # Errors
    ///
    /// If the system does not let it listen there, or start a thread.
    pub fn serve(
        address: SocketAddr,
        pages: impl Fn(&str) -> Page + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(PAGES)
            .thread_name("metrics page")
            .build()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            runtime.spawn(accept(listener, Arc::new(pages)));
            // That nothing was sent but it was dropped is the sign.
            let _ = runtime.block_on(stopped);
            // Connections are closed as they are; a page that is being made is not waited for.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name(String::from("metrics"));
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread.spawn(run)?),
        })
    }

    /// Where it listens: as asked for, but for port 0, which stands for any.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn accept(listener: TcpListener, pages: Arc<Pages>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let pages = Arc::clone(&pages);
                task::spawn(async move {
                    // Who is too slow, or has gone, does not get its answer.
                    let _ = timeout(CONNECTION, converse(stream, pages)).await;
                    drop(place);
                });
            }
            Err(e) => {
                tracing::warn!("cannot accept who asks for metrics: {e}; tried again");
                sleep(REST).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, pages: Arc<Pages>) -> hyper::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        // One that is kept would take a place from others between its requests.
        .keep_alive(false)
        // Some end their half when they have asked.
        .half_close(true)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(|asked| answer(asked, Arc::clone(&pages))),
        )
        .await
}

async fn answer(
    asked: Request<Incoming>,
    pages: Arc<Pages>,
) -> Result<Response<String>, Box<dyn error::Error + Send + Sync>> {
    if ![Method::GET, Method::HEAD].contains(asked.method()) {
        let response = Response::builder()
            .status(405)
            .header(CONTENT_TYPE, "text/plain")
            .header(ALLOW, "GET, HEAD");
        return Ok(response.body(String::from("GET it.\n"))?);
    }
    let path = asked.uri().path().to_owned();
    // It may block for a while, as it looks into buses. If it panics, that was told, and the connection ends.
    let page = task::spawn_blocking(move || pages(&path)).await?;
    Ok(Response::builder()
        .status(page.status)
        .header(CONTENT_TYPE, page.kind)
        .body(page.text)?)
}

impl Drop for Http {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::mpsc::{self, TryRecvError};
    use std::sync::{Mutex, PoisonError};

    use super::*;

    fn ask(address: SocketAddr, path: &str) -> net::TcpStream {
        let mut stream = net::TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        stream
    }

    #[test]
    fn a_page_that_takes_long_or_panics_holds_up_neither_others_nor_the_end() {
        let (release, held) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        let held = Mutex::new(held);
        let pages = move |path: &str| match path {
            "/long" => {
                begin.send(()).unwrap();
                let held = held.lock().unwrap_or_else(PoisonError::into_inner);
                held.recv().unwrap_err();
                Page::missing("after long")
            }
            "/panic" => panic!("as the test wants"),
            _ => Page::metrics(String::from("quick")),
        };
        let http = Http::serve("127.0.0.1:0".parse().unwrap(), pages).unwrap();
        let _long = ask(http.address(), "/long");
        begun.recv().unwrap();
        let mut answer = String::new();
        ask(http.address(), "/panic")
            .read_to_string(&mut answer)
            .unwrap();
        assert_eq!(answer, "");
        ask(http.address(), "/")
            .read_to_string(&mut answer)
            .unwrap();
        assert!(answer.ends_with("quick"), "{answer}");
        drop(http);
        // The page is still being made: what it holds is there.
        assert_eq!(begun.try_recv(), Err(TryRecvError::Empty));
        drop(release);
        // Now it ends, and with it what it holds.
        begun.recv().unwrap_err();
    }
}
