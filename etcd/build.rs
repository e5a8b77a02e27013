//! Generates the gRPC code without a system `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["etcd.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false) // the client builds its channels itself
        .build_server(false)
        .bytes(".")
        .compile_fds(files)?;
    Ok(())
}
