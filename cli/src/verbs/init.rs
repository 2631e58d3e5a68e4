//! `cluster init`: what a new cluster starts with. An authority and certificates, and for each broker and edge a folder with its
//! configuration and what it needs to prove who it is, to be copied to its machine. Nothing is overwritten and nothing is started:
//! the brokers form the cluster themselves, once all of them are up (docs/adr/0006).

use std::{
    collections::BTreeSet,
    fmt, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, bail};
use serde_json::json;
use trunkline_proto::limits;

use crate::{
    args::InitArgs,
    config,
    exit::Failure,
    pki::{Pki, write_new},
    render::out::Out,
};

/// Ports of a broker that has its machine for itself.
const LINK_PORT: u16 = 7443;
const GRPC_PORT: u16 = 7070;
const HTTP_PORT: u16 = 7080;
/// Ports of edges that share a machine with others: the first one's is one more.
const WS_PORT: u16 = 8090;
const EDGE_HTTP_PORT: u16 = 8190;

/// Where a broker's link is: `HOST` or `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Host {
    /// As in an address: one of IPv6 stands in brackets.
    host: String,
    port: u16,
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no HOST or HOST:PORT");
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(Self { host: format!("[{address}]"), port: LINK_PORT });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !text.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
            _ => (text, LINK_PORT),
        };
        let is_v6 = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok());
        let is_name =
            !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
        if port == 0 || !(is_v6 || is_name) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Host {
    fn address(&self) -> Option<IpAddr> {
        self.host.trim_matches(['[', ']']).parse().ok()
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.address().is_some_and(|address| address.is_loopback())
    }

    /// What a listener of it binds: itself on loopback, else every address, for its own may be another behind its network.
    fn any(&self) -> String {
        match self.address() {
            Some(address) if address.is_loopback() => self.host.clone(),
            _ if self.is_loopback() => Ipv4Addr::LOCALHOST.to_string(),
            Some(IpAddr::V6(_)) => format!("[{}]", Ipv6Addr::UNSPECIFIED),
            _ => Ipv4Addr::UNSPECIFIED.to_string(),
        }
    }
}

/// A folder to be made.
struct Node {
    role: &'static str,
    name: String,
    /// Where it is to run, if that is known.
    host: Option<Host>,
    config: String,
}

impl Node {
    fn folder(&self) -> String {
        format!("{}-{}", self.role, self.name)
    }

    fn command(&self) -> String {
        format!("cd {0} && trunkline {1} --config {1}.toml", self.folder(), self.role)
    }
}

pub(crate) fn run(args: &InitArgs) -> Result<(), Failure> {
    let nodes = plan(args)?;
    write(&args.out, &nodes)?;
    let mut out = Out::new();
    if args.json {
        for node in &nodes {
            let folder = args.out.join(node.folder());
            let host = node.host.as_ref().map(|host| host.host.clone());
            out.json(&json!({"role": node.role, "name": node.name, "host": host, "folder": folder, "command": node.command()}))?;
        }
        return out.flush();
    }
    print(&mut out, args, &nodes)?;
    out.flush()
}

fn print(out: &mut Out, args: &InitArgs, nodes: &[Node]) -> Result<(), Failure> {
    let dir = args.out.display();
    out.line(format_args!("made {dir}: pki/ with an authority and certificates, and a folder for each node\n"))?;
    let is_here = args.members.iter().all(Host::is_loopback);
    out.line(if is_here { "Start each:" } else { "Copy each folder to its machine, and start it there:" })?;
    for node in nodes {
        let host = node.host.as_ref().map_or("", |host| &host.host);
        match is_here {
            true => out.line(format_args!("  (cd {dir} && {})", node.command()))?,
            false => out.line(format_args!("  {host:<20} {}", node.command()))?,
        }
    }
    // on machines of their own and with loopback alone it is the same for all
    let grpc: BTreeSet<String> = args.members.iter().zip(1..).map(|(host, id)| grpc_of(args, host, id)).collect();
    let broker = grpc.into_iter().collect::<Vec<_>>().join(",");
    out.line("\nOnce all brokers run they form the cluster by themselves. Look at it:")?;
    out.line(format_args!("  trunkline cluster status --broker {broker}"))?;
    if !is_here && !args.insecure {
        out.line("\nnote: gRPC and HTTP listen on loopback only: handlers and tools reach a broker from its own machine alone. --insecure opens")?;
        out.line("them, without TLS, to a network of your own.")?;
    }
    if args.members.len().is_multiple_of(2) {
        out.line(format_args!(
            "\nwarning: {} brokers outlast no more losses than {}. Have 1, 3 or 5",
            args.members.len(),
            args.members.len() - 1
        ))?;
    }
    out.line(format_args!("\n{dir}/pki/ca.key signs certificates of further nodes (`trunkline certs --dir {dir}/pki`): keep it to yourself."))
}

/// Where tools find a broker's gRPC.
fn grpc_of(args: &InitArgs, host: &Host, id: u16) -> String {
    let port = if shares(args, host) { GRPC_PORT + id } else { GRPC_PORT };
    let is_open = args.insecure && !host.is_loopback();
    if is_open { format!("{}:{port}", host.host) } else { format!("{}:{port}", Ipv4Addr::LOCALHOST) }
}

/// Whether several brokers are on that machine.
fn shares(args: &InitArgs, host: &Host) -> bool {
    args.members.iter().filter(|other| other.host == host.host).count() > 1
}

/// Every node with its configuration, checked as the node itself will.
fn plan(args: &InitArgs) -> Result<Vec<Node>, Failure> {
    let mut nodes = Vec::new();
    for (id, host) in (1..).zip(&args.members) {
        let config = broker(args, id, host);
        config::check_broker(&config)?;
        nodes.push(Node { role: "broker", name: id.to_string(), host: Some(host.clone()), config });
    }
    let mut names = BTreeSet::new();
    for (number, name) in (1..).zip(&args.edge) {
        // `_` is no letter of a certificate's name
        if !limits::is_name(name) || name.contains('_') || !names.insert(name) {
            return Err(Failure::usage(format!(
                "--edge {name:?}: a name of its own is expected, 1 to 64 of [A-Za-z0-9.-]"
            )));
        }
        nodes.push(Node { role: "edge", name: name.clone(), host: None, config: edge(args, number, name) });
    }
    Ok(nodes)
}

fn broker(args: &InitArgs, id: u16, host: &Host) -> String {
    let (offset, any) = (if shares(args, host) { id } else { 0 }, host.any());
    let (grpc, http) = (GRPC_PORT + offset, HTTP_PORT + offset);
    let mut text = format!(
        "# Broker {id} of {}. Start it in this folder, or make `data` and `pki` absolute.\n[broker]\nnode_id = {id}\ncluster = {:?}\n\
         data = \"data\"\npki = \"pki\"\npartitions = {}   # fixed for good\nlink = \"{any}:{}\"\nlink_advertised = \"{host}\"\n",
        args.members.len(),
        args.name,
        args.partitions,
        host.port,
    );
    if args.insecure && !host.is_loopback() {
        let name = &host.host;
        text += &format!(
            "# no TLS: for a network of your own\ninsecure = true\ngrpc = \"{any}:{grpc}\"\nhttp = \"{any}:{http}\"\n\
             grpc_advertised = \"{name}:{grpc}\"\nhttp_advertised = \"{name}:{http}\"\n"
        );
    } else {
        text += &format!("grpc = \"127.0.0.1:{grpc}\"\nhttp = \"127.0.0.1:{http}\"\n");
    }
    if args.members.len() > 1 {
        text += "\n# the brokers that form the cluster: the same on each\n";
        for (id, link) in (1_u16..).zip(&args.members) {
            text += &format!("[[broker.members]]\nid = {id}\nlink = \"{link}\"\n");
        }
    }
    text
}

fn edge(args: &InitArgs, number: u16, name: &str) -> String {
    let brokers: Vec<String> = (1_u16..).zip(&args.members).map(|(id, link)| format!("\"{id}@{link}\"")).collect();
    let listen = match args.members.iter().all(Host::is_loopback) {
        true => format!("ws = \"127.0.0.1:{}\"\nhttp = \"127.0.0.1:{}\"\n", WS_PORT + number, EDGE_HTTP_PORT + number),
        false if args.insecure => {
            "# no TLS: for a network of your own\ninsecure = true\nws = \"0.0.0.0:8080\"\nhttp = \"0.0.0.0:8081\"\n"
                .to_owned()
        }
        false => "ws = \"127.0.0.1:8080\"\nhttp = \"127.0.0.1:8081\"\n".to_owned(),
    };
    format!(
        "# Edge {name}. One broker that answers is enough: it names the others.\n[edge]\nname = \"{name}\"\npki = \"pki\"\nbrokers = [{}]\n{listen}\n\
         # your APIs, the same on every edge\n[[api]]\nname = \"echo\"\npath = \"/echo\"\n",
        brokers.join(", ")
    )
}

/// Makes everything, or nothing if any of it is there.
fn write(dir: &Path, nodes: &[Node]) -> anyhow::Result<()> {
    let folders: Vec<PathBuf> = nodes.iter().map(|node| dir.join(node.folder())).collect();
    let pki_dir = dir.join("pki");
    let mut paths = folders.iter().chain([&pki_dir]);
    if let Some(there) = paths.find(|path| path.symlink_metadata().is_ok()) {
        bail!("{} is there already: nothing was written. Name another --out", there.display());
    }
    let pki = Pki::open_or_make(&pki_dir)?;
    for (node, folder) in nodes.iter().zip(&folders) {
        let certificate = match node.name.parse() {
            Ok(id) if node.role == "broker" => pki.broker(id)?.path,
            _ => pki.edge(&node.name)?.path,
        };
        let own = folder.join("pki");
        fs::create_dir_all(&own).with_context(|| own.display().to_string())?;
        for (file, mode) in
            [(pki.authority().path.clone(), 0o644), (certificate.with_extension("key"), 0o600), (certificate, 0o644)]
        {
            let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            let name = file.file_name().context("a certificate's file has a name")?;
            write_new(&own.join(name), &text, mode)?;
        }
        write_new(&folder.join(format!("{}.toml", node.role)), &node.config, 0o644)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{
        args::{Cli, ClusterVerb, Command},
        config::{BrokerRole, EdgeRole},
    };

    fn args(line: &str) -> InitArgs {
        let line = format!("trunkline cluster init {line}");
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Cluster(cluster) => match cluster.verb {
                ClusterVerb::Init(args) => args,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    fn role(line: &str) -> Command {
        Cli::try_parse_from(line.split_whitespace()).unwrap().command
    }

    fn load_broker(dir: &Path, id: u16) -> BrokerRole {
        let line = format!("trunkline broker --config {}", dir.join(format!("broker-{id}/broker.toml")).display());
        let Command::Broker(args) = role(&line) else { panic!("{line}") };
        BrokerRole::load(&args, &[]).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn hosts_are_read() {
        for (text, expected) in [
            ("10.0.0.1", "10.0.0.1:7443"),
            ("b1.example:7444", "b1.example:7444"),
            ("::1", "[::1]:7443"),
            ("[fd00::1]:1", "[fd00::1]:1"),
            ("[fd00::1]", "[fd00::1]:7443"),
        ] {
            assert_eq!(text.parse::<Host>().map(|host| host.to_string()), Ok(expected.to_owned()));
        }
        for text in ["", ":1", "a:0", "a:b", "a b", "a/b", "[x]:1", "fd00::1:x", "1@a:1"] {
            assert!(text.parse::<Host>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_loads_and_agrees() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("c");
        run(&args(&format!(
            "--members 10.0.0.1,b2:7444,[fd00::3] --edge e1 --edge e2 --insecure --name main --out {}",
            out.display()
        )))
        .unwrap();
        let brokers: Vec<_> = (1..=3).map(|id| load_broker(&out, id).broker).collect();
        for (id, broker) in (1..).zip(&brokers) {
            assert_eq!((broker.node_id, broker.cluster.as_str(), broker.members.len()), (id, "main", 3));
            assert_eq!(broker.members, brokers[0].members);
            assert_eq!(broker.link_advertised.as_deref(), Some(broker.members[id as usize - 1].link.as_str()));
            assert!(broker.insecure && broker.grpc_advertised.is_some());
        }
        for name in ["e1", "e2"] {
            let line = format!("trunkline edge --config {}", out.join(format!("edge-{name}/edge.toml")).display());
            let Command::Edge(args) = role(&line) else { panic!("{line}") };
            let edge = EdgeRole::load(&args, &[]).unwrap_or_else(|error| panic!("{error}")).edge;
            assert_eq!((edge.name.as_str(), edge.brokers.len()), (name, 3));
        }
        // a node has its own key, and not the authority's
        let files: BTreeSet<_> = fs::read_dir(out.join("broker-2/pki"))
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(files, ["broker-2.key", "broker-2.pem", "ca.pem"].map(str::to_owned).into());
    }

    #[test]
    fn brokers_of_one_machine_have_ports_of_their_own_and_stay_on_loopback() {
        let dir = tempfile::tempdir().unwrap();
        run(&args(&format!(
            "--members 127.0.0.1:7441,127.0.0.1:7442,127.0.0.1:7443 --insecure --out {}",
            dir.path().display()
        )))
        .unwrap();
        let brokers: Vec<_> = (1..=3).map(|id| load_broker(dir.path(), id).broker).collect();
        let ports: BTreeSet<_> = brokers.iter().flat_map(|broker| [broker.grpc, broker.http, broker.link]).collect();
        assert_eq!(ports.len(), 9);
        assert!(
            ports.iter().all(|address| address.ip().is_loopback()) && brokers.iter().all(|broker| !broker.insecure)
        );
    }

    #[test]
    fn nothing_is_overwritten_and_half_of_it_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let line = format!("--members a,b,c --out {}", dir.path().display());
        fs::create_dir(dir.path().join("broker-3")).unwrap();
        assert!(run(&args(&line)).unwrap_err().to_string().contains("broker-3 is there already"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::remove_dir(dir.path().join("broker-3")).unwrap();
        run(&args(&line)).unwrap();
        let before = fs::read(dir.path().join("pki/ca.key")).unwrap();
        assert!(run(&args(&line)).is_err());
        assert_eq!(fs::read(dir.path().join("pki/ca.key")).unwrap(), before);
    }

    #[test]
    fn what_makes_no_cluster_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("c");
        for line in [
            "--members a,b,c,d,e,f",
            "--members a,a,b",
            "--members a,b,c --partitions 0",
            "--members a,b,c --name a/b",
            "--members a,b,c --edge e --edge e",
            "--members a,b,c --edge ../e",
            "--members a,b,c --edge e_1",
        ] {
            let error = run(&args(&format!("{line} --out {}", out.display()))).unwrap_err();
            assert_eq!(error.code(), crate::exit::USAGE, "{line}: {error}");
        }
        assert!(!out.exists());
    }
}
