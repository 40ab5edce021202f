//! Certificate chains and private keys that operators give as files.

use std::path::Path;

use anyhow::{Context, ensure};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// What `--…-cert` and `--…-key` name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlsFiles<'a> {
    /// What both options begin with, such as `--tls`.
    option: &'static str,
    certificate: &'a Path,
    key: &'a Path,
}

impl<'a> TlsFiles<'a> {
    /// If both are given; clap sees to it that neither is alone.
    pub(crate) fn given(
        option: &'static str,
        certificate: Option<&'a Path>,
        key: Option<&'a Path>,
    ) -> Option<Self> {
        Some(Self { option, certificate: certificate?, key: key? })
    }

    /// The certificates, the server's own first, and its key, which are known to belong together.
    pub(crate) fn read(
        self,
    ) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let Self { option, certificate, key } = self;
        let chain: Vec<_> =
            CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect).with_context(
                || format!("{option}-cert {} cannot be read as PEM", certificate.display()),
            )?;
        ensure!(!chain.is_empty(), "{option}-cert {} holds no certificate", certificate.display());
        let secret = PrivateKeyDer::from_pem_file(key)
            .with_context(|| format!("{option}-key {} cannot be read as PEM", key.display()))?;
        settings(option, chain.clone(), secret.clone_key())?;
        Ok((chain, secret))
    }

    /// The settings of a server that shows them.
    pub(crate) fn settings(self) -> anyhow::Result<ServerConfig> {
        let (chain, secret) = self.read()?;
        settings(self.option, chain, secret)
    }
}

fn settings(
    option: &str,
    chain: Vec<CertificateDer<'static>>,
    secret: PrivateKeyDer<'static>,
) -> anyhow::Result<ServerConfig> {
    ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .with_context(|| format!("{option}-cert and {option}-key do not belong together"))
}
