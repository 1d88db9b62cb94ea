/// Why an image is not what it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Qcow2Error {
    /// It does not begin like a qcow2 image.
    #[error("it is not a qcow2 image")]
    NotQcow2,
    /// A version that nobody knows.
    #[error("qcow2 version {0} is not known (2 and 3 are)")]
    Version(u32),
    /// A size of clusters that the format does not have.
    #[error("clusters of 2^{0} bytes are impossible (2^9 to 2^21 are)")]
    ClusterBits(u32),
    /// A compression type that nobody knows.
    #[error("compression type {0} is not known")]
    Compression(u8),
    /// Something in the header is wrong.
    #[error("its header is damaged: {0}")]
    Header(&'static str),
    /// Header, extensions and the backing file's name are longer than a cluster.
    #[error("the header has no room for that: it must fit in one cluster")]
    HeaderFull,
    /// A table is where or as large as it cannot be.
    #[error("its header is damaged: impossible place or size of the {0}")]
    Table(&'static str),
    /// Features that are not supported.
    #[error("it uses features that are not supported: {0}")]
    UnknownFeatures(String),
    /// It is encrypted in a way that nobody knows.
    #[error("it is encrypted by method {0}, which is not known (1, AES, and 2, LUKS, are)")]
    CryptMethod(u32),
    /// The passphrase, or the LUKS header.
    #[error(transparent)]
    Encryption(#[from] crate::CryptError),
    /// Its tables contradict themselves.
    #[error("it is corrupt: {0}; `vireo image check --repair all` may repair it")]
    Corrupt(&'static str),
    /// It was found to be corrupt earlier.
    #[error(
        "it is marked corrupt and is opened read-only at most; \
         `vireo image check --repair all` may repair it"
    )]
    MarkedCorrupt,
    /// It names a backing file that was not opened.
    #[error("its data is in another file, which its header does not name")]
    NoDataFile,
    /// Something that cannot be asked of this image.
    #[error("{0}")]
    Unsupported(&'static str),
    /// There is no such snapshot or bitmap.
    #[error("there is no {what} {name:?}")]
    NoSuch {
        /// What was looked for.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// There is one already.
    #[error("there is a {what} {name:?} already")]
    Exists {
        /// What it is.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The host failed.
    #[error("cannot {what}")]
    Io {
        /// What was being done: a verb and what follows it.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

impl Qcow2Error {
    /// Wraps the host's error; `what` is a verb and what follows it.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

impl From<Qcow2Error> for std::io::Error {
    fn from(error: Qcow2Error) -> Self {
        match error {
            // The number is what an error policy decides by.
            Qcow2Error::Io { source, .. } => source,
            Qcow2Error::Encryption(source) => source.into(),
            other => std::io::Error::other(other),
        }
    }
}
