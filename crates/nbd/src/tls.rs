//! TLS: certificates in a directory, named and laid out as QEMU does it.
//!
//! | file                                | server                  | client                      |
//! |-------------------------------------|-------------------------|-----------------------------|
//! | `ca-cert.pem`                       | to verify clients       | to verify the server         |
//! | `ca-crl.pem`                        | what of it was revoked, if it is there        ||
//! | `server-cert.pem`, `server-key.pem` | its own                 |                             |
//! | `client-cert.pem`, `client-key.pem` |                         | its own, if there are any    |
//!
//! Keys are not encrypted. The name of a host has to be among a certificate's alternative names;
//! its common name does not count. There are no pre-shared keys and no anonymous sessions: the
//! library has neither.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme,
};

use crate::NbdError;

const CA_CERT: &str = "ca-cert.pem";
const CA_CRL: &str = "ca-crl.pem";

fn wrong(path: &Path, why: impl std::fmt::Display) -> NbdError {
    NbdError::Credentials {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

fn pem_error(path: &Path, error: pem::Error) -> NbdError {
    match error {
        pem::Error::Io(error) => wrong(path, error),
        other => wrong(path, other),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, NbdError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|error| pem_error(path, error))?
        .collect();
    match all.map_err(|error| pem_error(path, error))? {
        none if none.is_empty() => Err(wrong(path, "there is no certificate in it")),
        all => Ok(all),
    }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, NbdError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| pem_error(path, error))
}

fn roots(directory: &Path) -> Result<Arc<RootCertStore>, NbdError> {
    let path = directory.join(CA_CERT);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&path)? {
        roots
            .add(certificate)
            .map_err(|error| wrong(&path, error))?;
    }
    Ok(Arc::new(roots))
}

fn revoked(directory: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, NbdError> {
    let path = directory.join(CA_CRL);
    if !path.exists() {
        return Ok(Vec::new());
    }
    CertificateRevocationListDer::pem_file_iter(&path)
        .and_then(Iterator::collect)
        .map_err(|error| pem_error(&path, error))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A server's certificate, and whose clients it serves.
#[derive(Clone, Debug)]
pub struct ServerCredentials(Arc<ServerConfig>);

impl ServerCredentials {
    /// Reads them from a directory. With `verify_peer`, clients have to show a certificate of the
    /// authority in `ca-cert.pem`.
    ///
    /// # Errors
    /// A file is missing or makes no sense.
    pub fn load(directory: &Path, verify_peer: bool) -> Result<Self, NbdError> {
        let cert = directory.join("server-cert.pem");
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&cert, error))?;
        let builder = if verify_peer {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(roots(directory)?, provider())
                    .with_crls(revoked(directory)?)
                    .build()
                    .map_err(|error| wrong(&directory.join(CA_CERT), error))?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let key = key(&directory.join("server-key.pem"))?;
        let config = builder
            .with_single_cert(certificates(&cert)?, key)
            .map_err(|error| wrong(&cert, error))?;
        Ok(Self(Arc::new(config)))
    }

    pub(crate) fn connection(&self) -> Result<Box<RefCell<Connection>>, rustls::Error> {
        let connection = ServerConnection::new(Arc::clone(&self.0))?;
        Ok(Box::new(RefCell::new(Connection::Server(connection))))
    }
}

/// Whom a client trusts, and its own certificate.
#[derive(Clone, Debug)]
pub struct ClientCredentials(Arc<ClientConfig>);

impl ClientCredentials {
    /// Reads them from a directory. Without `verify_peer` any server will do, which protects
    /// against listeners only.
    ///
    /// # Errors
    /// A file is missing or makes no sense.
    pub fn load(directory: &Path, verify_peer: bool) -> Result<Self, NbdError> {
        let cert = directory.join("client-cert.pem");
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&cert, error))?;
        let builder = if verify_peer {
            let verifier =
                WebPkiServerVerifier::builder_with_provider(roots(directory)?, provider())
                    .with_crls(revoked(directory)?)
                    .build()
                    .map_err(|error| wrong(&directory.join(CA_CERT), error))?;
            builder.with_webpki_verifier(verifier)
        } else {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anybody(provider())))
        };
        let config = if cert.exists() {
            let key = key(&directory.join("client-key.pem"))?;
            builder
                .with_client_auth_cert(certificates(&cert)?, key)
                .map_err(|error| wrong(&cert, error))?
        } else {
            builder.with_no_client_auth()
        };
        Ok(Self(Arc::new(config)))
    }

    /// `host` is whom the certificate has to name.
    pub(crate) fn connection(&self, host: &str) -> Result<Box<RefCell<Connection>>, String> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let connection = ClientConnection::new(Arc::clone(&self.0), name);
        let connection = connection.map_err(|error| error.to_string())?;
        Ok(Box::new(RefCell::new(Connection::Client(connection))))
    }
}

/// Accepts every certificate whose key the server has.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
