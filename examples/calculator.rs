//! A service of typed values: it divides. In two terminals, in any order: `cargo run --release --example calculator --
//! serve` (once or more), and `-- 355 113`. Without arguments it does both.

use buslane::{Bus, CallOptions, Message, Result, Server, Service};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, PartialEq)]
#[repr(C)]
struct Division {
    dividend: f64,
    divisor: f64,
}

impl Message for Division {
    const NAME: &'static str = "examples.Division";
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, PartialEq)]
#[repr(C)]
struct Quotient(f64);

impl Message for Quotient {
    const NAME: &'static str = "examples.Quotient";
}

fn service(bus: &Bus) -> Result<Service<Division, Quotient>> {
    bus.typed_service("examples/divide")
}

fn serve(server: &mut Server<Division, Quotient>) -> Result<()> {
    let request = server.recv()?;
    if request.divisor == 0.0 {
        return request.refuse(1, "nothing can be divided by 0");
    }
    let quotient = Quotient(request.dividend / request.divisor);
    request.reply(&quotient)
}

/// A refusal is an answer; an error says that there is none.
fn divide(bus: &Bus, dividend: f64, divisor: f64) -> Result<Option<f64>> {
    let mut client = service(bus)?.client()?;
    let patient = CallOptions::new().wait_for_server();
    let answer = client.call_with(&patient, &Division { dividend, divisor })?;
    Ok(match answer {
        Ok(quotient) => Some(quotient.0),
        Err(refusal) => {
            println!("{refusal}");
            None
        }
    })
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &*arguments {
        [serve_it] if serve_it == "serve" => {
            let mut server = service(&Bus::open("examples")?)?.server()?;
            loop {
                serve(&mut server)?;
            }
        }
        [dividend, divisor] => {
            let (dividend, divisor) = (dividend.parse()?, divisor.parse()?);
            println!("{:?}", divide(&Bus::open("examples")?, dividend, divisor)?);
        }
        _ => {
            let dir = tempfile::tempdir_in("/dev/shm")?;
            let bus = Bus::at(dir.path().join("bus"))?;
            let mut server = service(&bus)?.server()?;
            let serving = std::thread::spawn(move || (0..2).try_for_each(|_| serve(&mut server)));
            assert_eq!(divide(&bus, 355.0, 113.0)?, Some(355.0 / 113.0));
            assert_eq!(divide(&bus, 1.0, 0.0)?, None);
            serving.join().expect("it does not panic")?;
        }
    }
    Ok(())
}
