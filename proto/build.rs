//! Generates the gRPC code without a system `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(
        [
            "muster/v1/agent.proto",
            "muster/v1/api.proto",
            "muster/v1/schedulers.proto",
            "muster/v1/streams.proto",
        ],
        ["proto"],
    )?;
    tonic_prost_build::configure()
        .build_transport(false) // whoever connects builds the channel
        .btree_map(".")
        .bytes(".")
        .compile_fds(files)?;
    Ok(())
}
