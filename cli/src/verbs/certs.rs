//! `certs`: a test CA, certificates of brokers and edges.

use serde_json::json;

use crate::{
    args::CertsArgs,
    exit::Failure,
    pki::{Made, Pki},
    render::out::Out,
};

pub(crate) fn run(args: CertsArgs) -> Result<(), Failure> {
    if args.broker.is_empty() && args.edge.is_empty() {
        return Err(Failure::usage("name at least one --broker ID or --edge NAME"));
    }
    let pki = Pki::open_or_make(&args.dir)?;
    let mut made = vec![pki.authority().clone()];
    for id in args.broker {
        made.push(pki.broker(id)?);
    }
    for name in &args.edge {
        made.push(pki.edge(name)?);
    }
    let mut out = Out::new();
    for Made { path, new } in made {
        let path = path.display().to_string();
        if args.json {
            out.json(&json!({"path": path, "new": new}))?;
        } else {
            out.line(format_args!("{} {path}", if new { "made" } else { "kept" }))?;
        }
    }
    out.flush()
}
