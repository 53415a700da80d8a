//! Metrics and health for who asks over HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tiny_http::{Header, Method, Request, Response, Server};

use crate::error::{Error, Result};

/// What is answered to a path: the status, the type, and the text. `None`: there is no such page.
type Page = dyn Fn(&str) -> Option<(u16, &'static str, String)> + Send;

/// A server, until it is dropped.
pub struct Http {
    server: Arc<Server>,
    address: SocketAddr,
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
    pub fn serve(address: SocketAddr, page: Box<Page>) -> Result<Self> {
        let listen = |why: String| Error::Listen {
            at: address.to_string(),
            why,
        };
        let server = Server::http(address).map_err(|e| listen(e.to_string()))?;
        let bound = server.server_addr().to_ip();
        let address = bound.ok_or_else(|| listen(String::from("it is no IP address")))?;
        let server = Arc::new(server);
        let thread = {
            let server = Arc::clone(&server);
            let run = move || {
                server
                    .incoming_requests()
                    .for_each(|asked| answer(asked, &page))
            };
            let thread = thread::Builder::new().name(String::from("metrics"));
            thread.spawn(run).map_err(|e| listen(e.to_string()))?
        };
        Ok(Self {
            server,
            address,
            thread: Some(thread),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn answer(asked: Request, page: &Page) {
    let path = asked.url().split('?').next().unwrap_or_default();
    let (status, kind, text) = match asked.method() {
        Method::Get | Method::Head => page(path).unwrap_or_else(|| {
            (
                404,
                "text/plain",
                String::from("There is /metrics and /health.\n"),
            )
        }),
        _ => (405, "text/plain", String::from("GET it.\n")),
    };
    let mut response = Response::from_string(text).with_status_code(status);
    if let Ok(header) = Header::from_bytes("Content-Type", kind) {
        response.add_header(header);
    }
    // Who has gone meanwhile does not want it.
    let _ = asked.respond(response);
}

impl Drop for Http {
    fn drop(&mut self) {
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
