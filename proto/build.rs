//! Compiles the protobuf files with protox: no protoc is needed.
use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "trunkline/v1/records.proto",
        "trunkline/v1/trunkline.proto",
        "trunkline/v1/link.proto",
        "trunkline/v1/peer.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let set = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptor.bin"), set.encode_to_vec())?;
    // BTreeMap: maps that reach disk must encode in one order
    tonic_prost_build::configure().bytes(".").btree_map(".").compile_fds(set)?;
    Ok(())
}
