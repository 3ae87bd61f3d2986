//! An authority of its own for each test, with keys made at run time.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::sync::atomic::{AtomicU64, Ordering};

use quorate_transports::Certificates;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};

static NUMBER: AtomicU64 = AtomicU64::new(1);

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        // Two that share a name would be told apart by their signatures only.
        let name = format!("authority {}", NUMBER.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its certificate.
    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate made out to names, and its key.
    pub(crate) fn signed(&self, names: &[&str]) -> (String, String) {
        self.sign(CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap())
    }

    /// What a member needs that trusts this authority only.
    pub(crate) fn certificates(&self, names: &[&str]) -> Certificates {
        self.trusting(self, names)
    }

    /// Signed by this authority, for a member that trusts another one.
    pub(crate) fn trusting(&self, other: &Self, names: &[&str]) -> Certificates {
        let (chain, key) = self.signed(names);
        Certificates::from_pem(&other.pem(), &chain, &key).unwrap()
    }

    pub(crate) fn expired(&self, names: &[&str]) -> Certificates {
        self.between(names, (2001, 2002))
    }

    pub(crate) fn not_valid_yet(&self, names: &[&str]) -> Certificates {
        self.between(names, (3001, 3002))
    }

    fn between(&self, names: &[&str], (from, to): (i32, i32)) -> Certificates {
        let mut params =
            CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        let (chain, key) = self.sign(params);
        Certificates::from_pem(&self.pem(), &chain, &key).unwrap()
    }

    /// As [`certificates`](Self::certificates), under a number that a list can name.
    pub(crate) fn numbered(&self, names: &[&str], number: u64) -> Certificates {
        let names = names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names).unwrap();
        params.serial_number = Some(SerialNumber::from(number));
        let (chain, key) = self.sign(params);
        Certificates::from_pem(&self.pem(), &chain, &key).unwrap()
    }

    /// Its list of revoked certificates, good until the beginning of a year.
    pub(crate) fn revokes(&self, numbers: &[u64], until: i32) -> String {
        let revoked = |number: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*number),
            revocation_time: date_time_ymd(2001, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2001, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: numbers.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0).unwrap().pem().unwrap()
    }

    fn sign(&self, params: CertificateParams) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}
