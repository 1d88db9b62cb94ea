//! TLS, with certificates of an authority of our own.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::*;
use crate::{ClientCredentials, ServerCredentials};

/// Makes an authority, a server's certificate and a client's, in QEMU's layout.
fn certificates(directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "an authority");
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    write("ca-cert.pem", &authority.pem());
    let issuer = Issuer::new(params, key);
    for (who, name) in [("server", "localhost"), ("client", "somebody")] {
        let key = KeyPair::generate().unwrap();
        let names = vec![name.to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        write(&format!("{who}-cert.pem"), &certificate.pem());
        write(&format!("{who}-key.pem"), &key.serialize_pem());
    }
}

fn tls_server(pki: &Path, verify_peer: bool) -> (Server, u16) {
    let server = Server::new(ServerOptions {
        tls: Some(ServerCredentials::load(pki, verify_peer).unwrap()),
        ..ServerOptions::new(vec![thread()])
    });
    let (_, node) = memory(4 << 20);
    server.add_export(writable("disk", node)).unwrap();
    let address = server.listen(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    match address {
        Address::Tcp { port, .. } => (server, port),
        Address::Unix(_) => panic!("{address}"),
    }
}

fn options(port: u16, tls: Option<ClientCredentials>) -> ClientOptions {
    ClientOptions {
        export: "disk".into(),
        tls,
        ..ClientOptions::new(Address::Tcp {
            host: "127.0.0.1".into(),
            port,
        })
    }
}

#[test]
fn others_reach_our_server_by_tls() {
    let folder = Folder::new();
    certificates(&folder.path("pki"));
    let (_server, port) = tls_server(&folder.path("pki"), true);
    let pki = folder.path("pki").display().to_string();
    let about = folder.run(&format!(
        "nbdinfo nbds://localhost:{port}/disk?tls-certificates={pki}"
    ));
    assert!(about.contains("with TLS"), "{about}");
    let error = folder.fails(&format!("nbdinfo nbd://localhost:{port}/disk"));
    assert!(error.contains("TLS"), "{error}");
    std::fs::write(folder.path("a.raw"), pattern(4 << 20, 3)).unwrap();
    let object = format!("tls-creds-x509,id=t,endpoint=client,dir={pki}");
    let image = |read_only: &str| {
        format!("driver=nbd,host=localhost,port={port},export=disk,tls-creds=t{read_only}")
    };
    folder.run(&format!(
        "qemu-img convert -n --object {object} -f raw a.raw --target-image-opts {}",
        image("")
    ));
    folder.run(&format!(
        "qemu-img convert --object {object} --image-opts {} -O raw b.raw",
        image("")
    ));
    folder.run("cmp a.raw b.raw");
    // Somebody else's client.
    certificates(&folder.path("other"));
    let other = folder.path("other").display().to_string();
    folder.fails(&format!(
        "nbdinfo nbds://localhost:{port}/disk?tls-certificates={other}"
    ));
}

#[test]
fn we_reach_servers_of_others_by_tls() {
    let folder = Folder::new();
    certificates(&folder.path("pki"));
    let _peer = folder.spawn(
        "nbdkit -f -U SOCKET --tls=require --tls-certificates=pki --tls-verify-peer memory 1M",
    );
    let trusted = ClientCredentials::load(&folder.path("pki"), true).unwrap();
    let with = |tls| ClientOptions {
        tls,
        ..ClientOptions::new(folder.socket())
    };
    let disk = disk(open(with(Some(trusted))).unwrap());
    block_on(move || async move {
        let bytes = pattern(300_000, 7);
        write(&*disk, 1000, &bytes).await.unwrap();
        assert!(read(&*disk, 1000, bytes.len()).await.unwrap() == bytes);
    });
    let error = open(with(None)).err().unwrap();
    assert!(error.to_string().contains("TLS"), "{error}");
}

#[test]
fn only_those_who_are_trusted_come_to_terms() {
    let folder = Folder::new();
    certificates(&folder.path("pki"));
    certificates(&folder.path("other"));
    let load = |name: &str, verify| ClientCredentials::load(&folder.path(name), verify).unwrap();
    let (_server, port) = tls_server(&folder.path("pki"), true);
    let disk = disk(open(options(port, Some(load("pki", true)))).unwrap());
    block_on(move || async move {
        let bytes = pattern(3 << 20, 9);
        write(&*disk, 5, &bytes).await.unwrap();
        assert!(read(&*disk, 5, bytes.len()).await.unwrap() == bytes);
    });
    let uri = |name: &str| -> crate::Uri {
        let directory = folder.path(name).display().to_string();
        let text = format!("nbds://localhost:{port}/disk?tls-certificates={directory}");
        text.parse().unwrap()
    };
    assert!(open(ClientOptions::of_uri(uri("pki"), None).unwrap()).is_ok());
    assert!(open(ClientOptions::of_uri(uri("other"), None).unwrap()).is_err());
    assert!(ClientOptions::of_uri(uri("nowhere"), None).is_err());
    // A server that we do not trust, and one that does not trust us.
    for verify in [true, false] {
        assert!(open(options(port, Some(load("other", verify)))).is_err());
    }
    assert!(open(options(port, None)).is_err());
    // A name that is not in the certificate.
    let wrong = ClientOptions {
        tls_hostname: Some("elsewhere.example".into()),
        ..options(port, Some(load("pki", true)))
    };
    let error = open(wrong).err().unwrap();
    assert!(
        machine_chain(&error).contains("name"),
        "{}",
        machine_chain(&error)
    );
    // Without verification on either side anybody may come.
    let (_open, port) = tls_server(&folder.path("pki"), false);
    assert!(open(options(port, Some(load("other", false)))).is_ok());
    // A server without TLS.
    let plain = server();
    plain.listen(&folder.socket()).unwrap();
    let error = open(ClientOptions {
        tls: Some(load("pki", true)),
        ..ClientOptions::new(folder.socket())
    });
    assert!(error.err().unwrap().to_string().contains("refuses TLS"));
}

/// An error and its causes.
fn machine_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

#[test]
fn credentials_that_are_not_there_are_named() {
    let folder = Folder::new();
    certificates(&folder.path("pki"));
    std::fs::write(folder.path("pki/server-key.pem"), "nothing").unwrap();
    let error = ServerCredentials::load(&folder.path("pki"), true).unwrap_err();
    assert!(error.to_string().contains("server-key.pem"), "{error}");
    let error = ClientCredentials::load(&folder.path("nowhere"), true).unwrap_err();
    assert!(error.to_string().contains("ca-cert.pem"), "{error}");
    // A client need not have a certificate.
    std::fs::remove_file(folder.path("pki/client-cert.pem")).unwrap();
    assert!(ClientCredentials::load(&folder.path("pki"), true).is_ok());
}
