//! Spans, with the trace that a message belongs to.

mod common;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use buslane::{Envelope, Kind, TraceParent};
use common::private;
use tracing_subscriber::fmt::format::FmtSpan;

#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_message_in_an_envelope_is_sent_and_handled_in_spans_with_its_trace() {
    let (private, said) = (private(), Said::default());
    let writer = said.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .with_span_events(FmtSpan::NEW)
        .with_ansi(false)
        .finish();
    let topic = private.bus().topic("orders/new").unwrap();
    let (mut reader, mut publisher) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
    let parent = TraceParent {
        trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
        span: 0xb7ad_6b71_6920_3331,
        flags: 1,
    };
    tracing::subscriber::with_default(subscriber, || {
        publisher.send(b"plain").unwrap();
        let envelope = Envelope::new(Kind::Command).of_type("Order").traced(parent);
        publisher.send_with(&envelope, b"7 pears").unwrap();
        drop(reader.recv().unwrap());
        let order = reader.recv().unwrap();
        let envelope = order.envelope().unwrap();
        assert_eq!(envelope.trace_parent(), Some(parent));
        let _handling = envelope.span("orders/new").entered();
    });
    let said = said.0.lock().unwrap();
    let lines: Vec<&str> = str::from_utf8(&said).unwrap().lines().collect();
    let [sent, handled] = lines[..] else {
        panic!("{lines:?}")
    };
    for (line, name) in [(sent, "buslane.send"), (handled, "buslane.handle")] {
        for part in [
            name,
            "orders/new",
            "kind=command",
            "Order",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert!(line.contains(part), "no {part} in {line}");
        }
    }
}
