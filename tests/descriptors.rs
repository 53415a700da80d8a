//! Out of file descriptors. A binary of its own, and one test: the limit is the process's.

mod common;

use std::time::Duration;

use buslane::{CallOptions, ErrorKind, Request};
use common::{PATIENCE, private};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Replies while no file can be opened.
fn reply_without_files(request: Request) -> buslane::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
    let sent = request.reply(b"!");
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_out_of_descriptors_loses_no_request() {
    let private = private();
    let service = private.bus().service("s").unwrap();
    let (mut one, mut two) = (service.server().unwrap(), service.server().unwrap());
    let client = service.client().unwrap();
    let mut pending: Vec<_> = (0..3).map(|_| client.start(b"?").unwrap()).collect();
    let held = [
        one.recv().unwrap(),
        two.recv().unwrap(),
        one.recv().unwrap(),
    ];
    let [first, second, third] = held;
    first.reply(b"!").unwrap();
    // It joins the inbox: the first must list its readers anew.
    second.reply(b"!").unwrap();
    let third = reply_without_files(third);
    // Sent all the same, or given back: not taken for one that nobody waits for.
    if third.is_err() {
        one.recv().unwrap().reply(b"!").unwrap();
    }
    let last = pending.pop().unwrap().wait_timeout(PATIENCE).unwrap();
    assert_eq!(last.expect("an answer").unwrap(), b"!");

    // The lane in another client's inbox can't be made, and no other server is to get the request.
    let client = service.client().unwrap();
    let once = CallOptions::new().at_most_once();
    let pending = client.start_with(&once, b"?").unwrap();
    let waiting = tokio::spawn(pending);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let request = match one.try_recv().unwrap() {
        Some(request) => request,
        None => two.recv().unwrap(),
    };
    reply_without_files(request).unwrap_err();
    let told = tokio::time::timeout(PATIENCE, waiting).await;
    let told = told.expect("it is told").unwrap().unwrap_err();
    assert_eq!(told.kind(), ErrorKind::ServerDied);
}
