//! A certificate authority for tests and `dev`, and the certificates it issues: `ca.pem`, `ca.key`, `<role>-<name>.pem` and
//! `.key`. What exists is kept. Production clusters bring their own certificates; only the names matter:
//! `broker.<id>.trunkline.internal` and `edge.<name>.trunkline.internal`.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use trunkline_proto::limits;
use trunkline_quic::{AUTHORITY_FILE, Identity};

/// Years a certificate is good for.
const YEARS: i16 = 10;

/// A certificate, and whether it was made just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) path: PathBuf,
    pub(crate) new: bool,
}

/// A folder with an authority in it.
pub(crate) struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    authority: Made,
}

impl Pki {
    /// The authority in `dir`, made if there is none.
    pub(crate) fn open_or_make(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("folder {}", dir.display()))?;
        let (certificate, key) = (dir.join(AUTHORITY_FILE), dir.join("ca.key"));
        let params = authority_params()?;
        let (keys, new) = match (certificate.exists(), key.exists()) {
            (true, true) => {
                let pem = fs::read_to_string(&key).with_context(|| key.display().to_string())?;
                (KeyPair::from_pem(&pem).with_context(|| format!("{} is no private key", key.display()))?, false)
            }
            (false, false) => {
                let keys = KeyPair::generate()?;
                write_new(&key, &keys.serialize_pem(), 0o600)?;
                write_new(&certificate, &params.self_signed(&keys)?.pem(), 0o644)?;
                (keys, true)
            }
            (true, false) => bail!("{} has no ca.key beside it: it cannot issue certificates", certificate.display()),
            (false, true) => bail!("{} has no ca.pem beside it; remove it to begin anew", key.display()),
        };
        let issuer = Issuer::new(params, keys);
        Ok(Self { dir: dir.to_owned(), issuer, authority: Made { path: certificate, new } })
    }

    pub(crate) fn authority(&self) -> &Made {
        &self.authority
    }

    /// A broker's certificate, for both ends of a connection.
    pub(crate) fn broker(&self, id: u64) -> anyhow::Result<Made> {
        self.issue(&Identity::broker(id), &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth])
    }

    /// An edge's certificate.
    pub(crate) fn edge(&self, name: &str) -> anyhow::Result<Made> {
        if !limits::is_name(name)
            || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
        {
            bail!("{name:?} is no name for an edge with a certificate: 1 to 64 of [A-Za-z0-9.-]");
        }
        self.issue(&Identity::edge(name), &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    fn issue(&self, node: &Identity, usages: &[ExtendedKeyUsagePurpose]) -> anyhow::Result<Made> {
        let (certificate, key) = (self.dir.join(node.certificate_file()), self.dir.join(node.key_file()));
        match (certificate.exists(), key.exists()) {
            (true, true) => return Ok(Made { path: certificate, new: false }),
            (true, false) => bail!("{} has no {} beside it", certificate.display(), node.key_file()),
            // a run that was cut short between the two files
            (false, true) => fs::remove_file(&key).with_context(|| key.display().to_string())?,
            (false, false) => {}
        }
        let mut params = CertificateParams::new(vec![node.dns_name()])?;
        params.distinguished_name.push(DnType::CommonName, format!("Trunkline {node}"));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        valid_from_today(&mut params);
        let keys = KeyPair::generate()?;
        let issued = params.signed_by(&keys, &self.issuer)?;
        write_new(&key, &keys.serialize_pem(), 0o600)?;
        write_new(&certificate, &issued.pem(), 0o644)?;
        Ok(Made { path: certificate, new: true })
    }
}

/// The same each time but for the dates: an authority that is opened again issues under the same name.
fn authority_params() -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "Trunkline test CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    valid_from_today(&mut params);
    Ok(params)
}

/// From the day before: clocks differ.
fn valid_from_today(params: &mut CertificateParams) {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let from = today.yesterday().unwrap_or(today);
    let date = |date: jiff::civil::Date, years: i16| {
        // the 28th exists in every month; months and days are small and positive
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs().min(28));
        rcgen::date_time_ymd(i32::from(date.year().saturating_add(years)), month, day)
    };
    params.not_before = date(from, 0);
    params.not_after = date(today, YEARS);
}

/// Writes a file that does not exist yet: whole, or not at all.
pub(crate) fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let context = || path.display().to_string();
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let mut file = options.open(&new).with_context(context)?;
    file.write_all(text.as_bytes()).with_context(context)?;
    file.sync_all().with_context(context)?;
    // a hard link, unlike a rename, replaces nothing
    fs::hard_link(&new, path).with_context(context)?;
    fs::remove_file(&new).with_context(context)
}

#[cfg(test)]
mod tests {
    use rustls::{
        RootCertStore,
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    };

    use super::*;

    fn certificate(path: &Path) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(path).unwrap()
    }

    fn verifies(dir: &Path, file: &str, name: &str) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&dir.join("ca.pem"))).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        rustls::client::danger::ServerCertVerifier::verify_server_cert(
            &*verifier,
            &certificate(&dir.join(file)),
            &[],
            &name,
            &[],
            UnixTime::now(),
        )
        .is_ok()
    }

    #[test]
    fn certificates_are_issued_once_and_verify() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open_or_make(dir.path()).unwrap();
        assert!(pki.authority().new && pki.broker(1).unwrap().new && pki.edge("e1").unwrap().new);
        assert!(verifies(dir.path(), "broker-1.pem", "broker.1.trunkline.internal"));
        assert!(!verifies(dir.path(), "broker-1.pem", "broker.2.trunkline.internal"));
        assert!(!verifies(dir.path(), "edge-e1.pem", "edge.e1.trunkline.internal"), "an edge is no server");
        // opened again: what exists stays, what is new is issued by the same authority
        let before = fs::read(dir.path().join("broker-1.pem")).unwrap();
        let pki = Pki::open_or_make(dir.path()).unwrap();
        assert!(!pki.authority().new && !pki.broker(1).unwrap().new && pki.broker(2).unwrap().new);
        assert_eq!(fs::read(dir.path().join("broker-1.pem")).unwrap(), before);
        assert!(verifies(dir.path(), "broker-2.pem", "broker.2.trunkline.internal"));
    }

    #[cfg(unix)]
    #[test]
    fn keys_are_the_owner_s_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        Pki::open_or_make(dir.path()).unwrap().broker(1).unwrap();
        for key in ["ca.key", "broker-1.key"] {
            let mode = fs::metadata(dir.path().join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{key}");
        }
    }

    #[test]
    fn half_an_authority_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Pki::open_or_make(dir.path()).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(Pki::open_or_make(dir.path()).is_err());
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open_or_make(dir.path()).unwrap();
        for name in ["../x", "", "a/b", "a b"] {
            assert!(pki.edge(name).is_err(), "{name}");
        }
    }
}
