//! What `/metrics` and `/health` answer, and that no client keeps others from them, or the broker from ending.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use buslane::Bus;
use buslane_broker::{Broker, Buses, Config};
use tempfile::TempDir;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Any port.
fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn broker() -> (TempDir, Broker) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let bus = Bus::at(dir.path().join("bus")).unwrap();
    let config = Config::parse("[[route]]\nname = 'r'\nfrom = 'in'\nto = 'out'").unwrap();
    let broker = Broker::start(config.routes(&mut Buses::new(&bus)).unwrap()).unwrap();
    broker.wait_until_running();
    (dir, broker)
}

fn send(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn read(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn ask(address: SocketAddr, what: &str) -> String {
    read(send(
        address,
        &format!("{what} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ))
}

fn assert_answers(address: SocketAddr) {
    let health = ask(address, "GET /health");
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    assert!(health.contains(r#""routes":{"r":"#), "{health}");
}

/// Instead of hanging.
fn assert_ends(broker: Broker) {
    let (tell, told) = mpsc::channel();
    let ending = thread::spawn(move || {
        drop(broker);
        tell.send(()).unwrap();
    });
    told.recv_timeout(PATIENCE).expect("it ends");
    ending.join().unwrap();
}

#[test]
fn two_pages_can_be_asked_for_and_nothing_else() {
    let (_dir, mut broker) = broker();
    let address = broker.serve(any()).unwrap();
    assert_answers(address);
    let metrics = ask(address, "GET /metrics?name=value");
    assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
    assert!(metrics.contains("application/openmetrics-text"));
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");

    let health = ask(address, "GET /health");
    let (_, text) = health.split_once("\r\n\r\n").unwrap();
    let head = ask(address, "HEAD /health");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    let length = format!("content-length: {}\r\n", text.len());
    assert!(head.contains(&length), "{length} {head}");

    for path in ["/", "/metrics/", "/healthy"] {
        let missing = ask(address, &format!("GET {path}"));
        assert!(missing.starts_with("HTTP/1.1 404"), "{missing}");
        assert!(missing.contains("/metrics and /health"), "{missing}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let refused = ask(address, &format!("{method} /health"));
        assert!(refused.starts_with("HTTP/1.1 405"), "{refused}");
        assert!(refused.contains("allow: GET, HEAD\r\n"), "{refused}");
    }
    let nonsense = read(send(address, "\u{1}\r\n\r\n"));
    assert!(nonsense.starts_with("HTTP/1.1 400"), "{nonsense}");
}

#[test]
fn who_has_ended_its_half_is_answered() {
    let (_dir, mut broker) = broker();
    let stream = send(broker.serve(any()).unwrap(), "GET /health HTTP/1.0\r\n\r\n");
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let health = read(stream);
    assert!(health.contains(" 200 OK\r\n"), "{health}");
}

#[test]
fn a_body_of_any_size_is_neither_made_room_for_nor_waited_for() {
    let (_dir, mut broker) = broker();
    let address = broker.serve(any()).unwrap();
    let mut open = Vec::new();
    for method in ["POST", "GET"] {
        for length in ["100000", "100000000000000", "18446744073709551615"] {
            let request = format!(
                "{method} /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
            );
            let mut stream = send(address, &request);
            let mut first = [0];
            // One that can't be is not answered in every case, but ends.
            let _ = stream.read(&mut first).unwrap();
            open.push(stream);
            assert_answers(address);
        }
    }
    for what in ["Transfer-Encoding: chunked", "Expect: 100-continue"] {
        open.push(send(
            address,
            &format!(
                "POST /metrics HTTP/1.1\r\nHost: localhost\r\n{what}\r\nContent-Length: 9\r\n\r\n"
            ),
        ));
        assert_answers(address);
    }
    assert_ends(broker);
}

#[test]
fn who_asks_and_asks_and_never_reads_holds_up_nobody() {
    let (_dir, mut broker) = broker();
    let address = broker.serve(any()).unwrap();
    let many = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(3000);
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(address).unwrap();
        // It closes the connection when it has answered once.
        let _ = stream.write_all(many.as_bytes());
        open.push(stream);
        assert_answers(address);
    }
    assert_ends(broker);
}

#[test]
fn who_connects_and_says_nothing_is_not_waited_for() {
    let (_dir, mut broker) = broker();
    let address = broker.serve(any()).unwrap();
    let some: Vec<_> = (0..60)
        .map(|n| send(address, ["", "GET /health HT"][n % 2]))
        .collect();
    assert_answers(address);
    let more: Vec<_> = (0..60).map(|_| send(address, "")).collect();
    // Those in excess wait until there is a place for them.
    drop(some);
    assert_answers(address);
    assert_ends(broker);
    drop(more);
}

#[test]
fn an_address_that_is_taken_leaves_it_where_it_was() {
    // Not where other tests' ports are, which might be the one that it has just left.
    let loopback = || SocketAddr::from(([127, 0, 0, 2], 0));
    let (_dir, mut broker) = broker();
    let address = broker.serve(loopback()).unwrap();
    let taken = TcpListener::bind(loopback()).unwrap();
    let why = broker.serve(taken.local_addr().unwrap()).unwrap_err();
    let why = why.to_string();
    assert!(why.starts_with("cannot serve metrics at"), "{why}");
    assert_answers(address);

    assert_eq!(broker.serve(address).unwrap(), address);
    assert_answers(address);

    let other = broker.serve(loopback()).unwrap();
    assert_ne!(other, address);
    assert_answers(other);
    // It has left the old one, so that another may have it.
    drop(TcpListener::bind(address).unwrap());

    broker.serve_no_more();
    drop(TcpListener::bind(other).unwrap());
    assert_eq!(broker.serve(other).unwrap(), other);
    assert_answers(other);
}
