# What CI runs, a person can run. `just --list` shows all.

# Everything that must pass before a change goes in.
check:
    .ci/run

# The long storms, each with a seed of its own: an hour or so. `just storms=100 deep` storms longer.
storms := "10"
cases := "20000"

deep:
    PROPTEST_CASES={{cases}} cargo test --release
    for storm in $(seq {{storms}}); do BUSLANE_STRESS_SECONDS=60 cargo test --release -p buslane --test stress -- --nocapture || exit 1; done
    cargo clippy -p buslane-bridge-zenoh --all-targets -- -D warnings
    just weaken

# The loom models of the core.
models:
    RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release -p buslane --test model

# Weakens every ordering, one at a time; some model must fail for each. `just weaken roster.rs` does only these.
weaken only="":
    RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom BUSLANE_ONLY={{only}} cargo test --release -p buslane --test model -- --ignored weaken --nocapture

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
