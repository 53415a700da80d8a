# What CI runs, a person can run. `just --list` shows all.

# Everything that must pass before a change goes in.
check:
    .ci/run

# All that takes long: hours. `just storms=60 deep` storms for an hour.
storms := "10"
cases := "20000"

deep:
    PROPTEST_CASES={{cases}} cargo test --release
    cargo test --release -p buslane --test storm -- --minutes {{storms}}
    cargo test --release -p buslane --test kill -- --all
    BUSLANE_LUCK=all cargo test -p buslane --test luck every_system_call -- --nocapture
    BUSLANE_EXPLORE=deep cargo test --release -p buslane --lib explored -- --nocapture --test-threads 1
    fuzz/run 600
    .ci/cost-of-checks
    cargo clippy -p buslane-bridge-zenoh --all-targets -- -D warnings
    just weaken

# The loom models of the core.
models:
    RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release -p buslane --test model

# Weakens every ordering, one at a time; some model must fail for each. `just weaken roster.rs` does only these.
weaken only="":
    RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom BUSLANE_ONLY={{only}} cargo test --release -p buslane --test model -- --ignored weaken --nocapture

# What has threads in one process, under ThreadSanitizer and AddressSanitizer. Needs a nightly toolchain with its sources.
sanitize:
    .ci/sanitize

# Plays all that fuzzing ever found, and fuzzes each target for so many seconds, if there is a nightly toolchain.
fuzz seconds="5":
    fuzz/run {{seconds}}

# The figures of docs/benchmarks.md. On a quiet machine.
figures:
    cargo build --release
    target/release/buslane bench rtt --size 8,64,256,1024 --against raw
    target/release/buslane bench rate --size 64,1024,65536 --against pipe
    target/release/buslane bench wake --against futex

# buslane beside other libraries, in docs/benchmarks.md. On a quiet machine; `just peers --quick` to see that it runs.
peers *args:
    cd benches/peers && cargo build --release
    benches/peers/target/release/buslane-peers --page docs/benchmarks.md {{args}}
