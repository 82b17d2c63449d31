//! What must never be printed, and how it is told from the rest.

use std::fmt;

/// What stands in for a secret wherever it would be printed.
pub(crate) const MASK: &str = "********";

/// A secret value. It prints as [`MASK`]; only [`Secret::reveal`] gives it away.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The secret itself, for the library that needs it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// Whether a key's value is to be masked. Errs on the side of masking: a hidden URL costs a look into the file, a
/// printed password costs a new password.
pub(crate) fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let telling = [
        "password",
        "passwd",
        "secret",
        "token",
        "credential",
        "private",
        "access_key",
        "key.pem",
        "oauthbearer.config",
        // librdkafka refuses it, but it is what a Java user writes first, with the password in it.
        "jaas",
    ];
    // The name of a file is no secret, only what is in it.
    !key.ends_with("_file") && telling.iter().any(|part| key.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_told_by_their_key() {
        for secret in [
            "sasl.password",
            "ssl.key.password",
            "ssl.keystore.password",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.assertion.private.key.pem",
            "ssl.key.pem",
            "sasl.jaas.config",
            "s3.secret_access_key",
            "s3.access_key_id",
            "s3.session_token",
            "SASL.PASSWORD",
        ] {
            assert!(is_secret_key(secret), "{secret}");
        }
        for open in [
            "sasl.username",
            "security.protocol",
            "ssl.ca.location",
            "s3.region",
            "sasl.password_file",
        ] {
            assert!(!is_secret_key(open), "{open}");
        }
        assert_eq!(format!("{:?}", Secret::new("hunter2")), MASK);
    }
}
