//! Which addresses a URL of the configuration may lead to. Judged twice by whoever makes requests: where the configuration writes an
//! address, and where a name has resolved to one, on the very address that is then dialled.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Who is reached at an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reach {
    /// Nobody a request may be for: link-local, where clouds keep credentials, and their other metadata services; unspecified,
    /// multicast, broadcast, reserved.
    Nobody,
    /// This machine or a private network, and what is no public host for another reason: documentation, benchmarks, discard.
    Private,
    /// Anybody.
    Public,
}

/// Services by which clouds hand out credentials, outside of link-local addresses: AWS, Google, Azure, Alibaba, Oracle.
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];

/// Whether a request may be made to this address; to a private one only where `private_too`.
pub fn may_be_dialled(address: IpAddr, private_too: bool) -> bool {
    match reach(address) {
        Reach::Nobody => false,
        Reach::Private => private_too,
        Reach::Public => true,
    }
}

/// Who is reached at an address. One that carries another inside (mapped, translated, tunnelled) reaches no further than that.
pub fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(v4) => reach_v4(v4),
        IpAddr::V6(v6) => embedded(v6).into_iter().map(reach_v4).fold(reach_v6(v6), Reach::min),
    }
}

/// RFC 6890 and IANA's registry of special-purpose addresses.
fn reach_v4(address: Ipv4Addr) -> Reach {
    let is_nobody = |[a, b, ..]: [u8; 4]| a == 0 || (a, b) == (169, 254) || a >= 224;
    let is_private = |octets: [u8; 4]| match octets {
        [10 | 127, ..] | [192, 168, ..] | [192, 0, 0 | 2, _] | [192, 88, 99, _] => true,
        [172, b, ..] => b & 0xf0 == 16,
        // of a provider's own network
        [100, b, ..] => b & 0xc0 == 64,
        [198, b, c, _] => b & 0xfe == 18 || (b, c) == (51, 100),
        [203, 0, 113, _] => true,
        _ => false,
    };
    match address.octets() {
        octets if is_nobody(octets) || METADATA_V4.contains(&address) => Reach::Nobody,
        octets if is_private(octets) => Reach::Private,
        _ => Reach::Public,
    }
}

fn reach_v6(address: Ipv6Addr) -> Reach {
    let segments = address.segments();
    let first = segments[0];
    if address.is_unspecified() || address.is_multicast() || first & 0xffc0 == 0xfe80 || METADATA_V6.contains(&address)
    {
        return Reach::Nobody;
    }
    // unique local, site-local as they once were, discard, documentation, segment routing, NAT64 of a network's own
    let is_private = first & 0xfe00 == 0xfc00
        || first & 0xffc0 == 0xfec0
        || segments[..4] == [0x100, 0, 0, 0]
        || segments[..2] == [0x2001, 0xdb8]
        || first & 0xfff0 == 0x3ff0
        || first == 0x5f00
        || segments[..3] == [0x64, 0xff9b, 1]
        || address.is_loopback();
    if is_private { Reach::Private } else { Reach::Public }
}

/// IPv4 addresses that an IPv6 address carries for somebody on the way to turn it into.
fn embedded(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let segments = address.segments();
    let pair = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    let last = pair(segments[6], segments[7]);
    match segments {
        _ if address.is_loopback() || address.is_unspecified() => vec![],
        // compatible, mapped, translated (RFC 4291, 2765)
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => vec![last],
        // NAT64 (RFC 6052, 8215)
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => vec![last],
        // 6to4 (RFC 3056)
        [0x2002, high, low, ..] => vec![pair(high, low)],
        // Teredo (RFC 4380): its server, and its client turned over
        [0x2001, 0, high, low, ..] => vec![pair(high, low), pair(!segments[6], !segments[7])],
        // ISATAP (RFC 5214)
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => vec![last],
        _ => vec![],
    }
}

/// The address that a URL's host writes, if it writes one rather than a name; with brackets or without. Besides the usual form these
/// are what resolvers and browsers take for IPv4: `2130706433`, `0x7f.1`, `0177.0.0.1`, `127.0.0.1.`. `Err`: it ends like an
/// address, and is none.
pub fn written(host: &str) -> Result<Option<IpAddr>, NoAddress> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Some(address) = bare.or(Some(host)).and_then(|text| text.parse().ok()) {
        return Ok(Some(address));
    }
    if bare.is_some() || host.contains([':', '%']) {
        return Err(NoAddress);
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    let parts: Vec<&str> = host.split('.').collect();
    if !parts.last().is_some_and(|last| is_number(last)) {
        return Ok(None);
    }
    v4_of(&parts).map(|v4| Some(IpAddr::V4(v4))).ok_or(NoAddress)
}

/// A host that is neither a name nor an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("neither a name nor an address")]
pub struct NoAddress;

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
        || part.get(..2).is_some_and(|prefix| prefix.eq_ignore_ascii_case("0x"))
            && part.bytes().skip(2).all(|byte| byte.is_ascii_hexdigit())
}

/// The last of up to four numbers fills what is left (`inet_aton`, and the URL standard's host parser).
fn v4_of(parts: &[&str]) -> Option<Ipv4Addr> {
    let (last, bytes) = parts.split_last().filter(|(_, bytes)| bytes.len() < 4)?;
    let mut address = number(last)?;
    let room = 8 * (4 - u32::try_from(bytes.len()).ok()?);
    if address >> room != 0 {
        return None;
    }
    for (part, shift) in bytes.iter().zip([24, 16, 8]) {
        address |= u64::from(u8::try_from(number(part)?).ok()?) << shift;
    }
    u32::try_from(address).ok().map(Ipv4Addr::from)
}

fn number(part: &str) -> Option<u64> {
    if !is_number(part) {
        return None;
    }
    match part.as_bytes() {
        [b'0', b'x' | b'X'] => Some(0),
        [b'0', b'x' | b'X', ..] => u64::from_str_radix(&part[2..], 16).ok(),
        [b'0', _, ..] => u64::from_str_radix(part, 8).ok(),
        _ => part.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Reach {
        reach(text.parse().unwrap_or_else(|error| panic!("{text}: {error}")))
    }

    #[test]
    fn nobody_is_reached_where_clouds_keep_credentials() {
        for text in [
            "169.254.169.254",
            "169.254.0.0",
            "169.254.255.255",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "0.0.0.0",
            "0.255.255.255",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "fe80::1",
            "febf:ffff::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "2002:a9fe:a9fe::1",
            "2001:0:a9fe:a9fe::1",
            "2001:0:808:808::5601:5601",
            "2001:db8::5efe:169.254.169.254",
            "::ffff:0.0.0.0",
        ] {
            assert_eq!(of(text), Reach::Nobody, "{text}");
        }
    }

    #[test]
    fn private_networks_are_told_from_public_ones_to_the_last_address() {
        for (private, public) in [
            ("10.0.0.0 10.255.255.255", "9.255.255.255 11.0.0.0"),
            ("127.0.0.0 127.255.255.255", "126.255.255.255 128.0.0.0"),
            ("172.16.0.0 172.31.255.255", "172.15.255.255 172.32.0.0"),
            ("192.168.0.0 192.168.255.255", "192.167.255.255 192.169.0.0"),
            ("100.64.0.0 100.127.255.255", "100.63.255.255 100.128.0.0"),
            ("192.0.0.1 192.0.2.255", "192.0.1.0 192.0.3.0"),
            ("198.18.0.0 198.19.255.255 198.51.100.7", "198.17.255.255 198.20.0.0 198.51.101.0"),
            ("203.0.113.1 192.88.99.1", "203.0.112.255 192.88.98.1"),
            ("::1 fc00:: fdff:ffff::1 fec0::1", "2606:4700::1111 fb00::1"),
            ("100::1 2001:db8::1 3fff:fff::1 5f00::1", "101::1 2001:db9::1 4000::1 5f01::1"),
            ("::ffff:127.0.0.1 ::127.0.0.1 ::ffff:10.0.0.1", "::ffff:8.8.8.8 ::8.8.8.8"),
            ("64:ff9b::10.0.0.1 64:ff9b:1::8.8.8.8 2002:a00:1::1", "64:ff9b::8.8.8.8 2002:808:808::1"),
            ("2606:4700::5efe:192.168.0.1 2606:4700::200:5efe:192.168.0.1", "2606:4700::5efe:8.8.8.8"),
        ] {
            private.split(' ').for_each(|text| assert_eq!(of(text), Reach::Private, "{text}"));
            public.split(' ').for_each(|text| assert_eq!(of(text), Reach::Public, "{text}"));
        }
    }

    #[test]
    fn private_ones_are_dialled_only_where_that_is_allowed() {
        let dialled = |text: &str| [true, false].map(|private_too| may_be_dialled(text.parse().unwrap(), private_too));
        assert_eq!(dialled("127.0.0.1"), [true, false]);
        assert_eq!(dialled("169.254.169.254"), [false, false]);
        assert_eq!(dialled("8.8.8.8"), [true, true]);
    }

    #[test]
    fn an_address_is_seen_however_it_is_written() {
        for loopback in [
            "127.0.0.1",
            "2130706433",
            "0x7f000001",
            "0X7F.1",
            "017700000001",
            "0177.0.0.1",
            "127.1",
            "127.0.1",
            "127.0.0.1.",
        ] {
            assert_eq!(written(loopback), Ok(Some(IpAddr::V4(Ipv4Addr::LOCALHOST))), "{loopback}");
        }
        for v6 in ["[::1]", "::1", "[0:0::0:1]"] {
            assert_eq!(written(v6), Ok(Some(IpAddr::V6(Ipv6Addr::LOCALHOST))), "{v6}");
        }
        for name in ["localhost", "example.com", "1.example.com", "a1", "0xg", "example.com.", "xn--p1ai"] {
            assert_eq!(written(name), Ok(None), "{name}");
        }
        for neither in [
            "256.1",
            "1.2.3.4.5",
            "4294967296",
            "127.0.0.08",
            "a.1",
            "1..1",
            "[::1",
            "[fe80::1%25eth0]",
            "0x100000000",
            "%31",
        ] {
            assert_eq!(written(neither), Err(NoAddress), "{neither}");
        }
    }
}
