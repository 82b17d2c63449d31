//! What an answer of S3, or none, means for the caller. Puts that meet 409 or 412 do not come here: those are outcomes.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::SdkError;

use crate::BoxError;
use crate::retry::{Failure, What};

/// The part of an answer that decides.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    /// Absent: no answer came.
    pub(super) status: Option<u16>,
    /// S3's own word in the body.
    pub(super) code: Option<String>,
    /// Where the bucket is, if S3 says so.
    pub(super) region: Option<String>,
    /// The credentials could not be had; no request was sent.
    pub(super) credentials: Option<Credentials>,
    /// The request could not even be built.
    pub(super) malformed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Credentials {
    /// None of the places where they may be has any.
    Missing,
    /// A profile or a variable is wrong.
    Misconfigured,
    /// A service that gives them out did not answer.
    Away,
}

impl Answer {
    /// For errors that came about on this side.
    pub(super) fn without_response<E: std::error::Error + 'static>(
        error: &SdkError<E, HttpResponse>,
    ) -> Answer {
        let credentials = find_credentials_error(error).map(|error| match error {
            CredentialsError::CredentialsNotLoaded(_) => Credentials::Missing,
            CredentialsError::InvalidConfiguration(_) => Credentials::Misconfigured,
            _ => Credentials::Away,
        });
        let malformed = match error {
            SdkError::ConstructionFailure(_) => true,
            SdkError::DispatchFailure(failure) => failure.is_user(),
            _ => false,
        };
        Answer {
            credentials,
            malformed: malformed && credentials.is_none(),
            ..Answer::default()
        }
    }
}

/// The error of the credentials, where they could not be had.
pub(super) fn find_credentials_error<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a CredentialsError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// Where credentials may come from.
const WHENCE: &str = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or `s3.access_key_id` and \
     `s3.secret_access_key`), or run where an instance or pod role gives them";

/// Decides. `proven`: requests have succeeded before with this set-up.
pub(super) fn judge(
    what: What<'_>,
    bucket: &str,
    answer: &Answer,
    proven: bool,
    source: BoxError,
) -> Failure {
    let refused = |remedy: String, source| Failure::Refused { remedy, source };
    if let Some(credentials) = answer.credentials {
        return without(credentials, proven, source);
    }
    if answer.malformed {
        return refused(
            "check the endpoint URL, the region and the bucket's name".to_owned(),
            source,
        );
    }
    let Some(status) = answer.status else {
        return Failure::Transient(source);
    };
    let code = answer.code.as_deref().unwrap_or_default();
    match (status, code) {
        // Only this word: a proxy or a wrong endpoint answers 404 as well.
        (404, "NoSuchKey") => Failure::NotFound,
        (404, "NoSuchBucket") => refused(format!("create the bucket {bucket}, or correct the archive's URL"), source),
        (404, _) => refused(
            "check the endpoint URL and whether it wants path style: what answers does not seem to be an S3 store".to_owned(),
            source,
        ),
        // Short-lived credentials that ran out: the next try loads new ones.
        (_, "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired") => Failure::Transient(source),
        (_, "RequestTimeTooSkewed") => refused("set this machine's clock".to_owned(), source),
        (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken") => {
            refused("check the AWS credentials: the store does not know them".to_owned(), source)
        }
        (_, "BadDigest" | "XAmzContentChecksumMismatch" | "XAmzContentSHA256Mismatch") => refused(
            "the bytes changed between hashing and upload: suspect the local disk or memory, or what lies on the way".to_owned(),
            source,
        ),
        (301 | 307 | 308, _) | (_, "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
            let region = answer.region.as_deref().map_or(String::new(), |region| format!(" ({region})"));
            refused(format!("give the region that the bucket is in{region}"), source)
        }
        (400, "RequestTimeout") | (408 | 409 | 425 | 429 | 500 | 502..=599, _) => Failure::Transient(source),
        (401 | 403, _) => refused(denied(what, bucket), source),
        (416, _) => refused(
            "the object is not what the archive's index says: run `everlog verify`".to_owned(),
            source,
        ),
        (501, _) => refused(
            "use a store that knows conditional puts (If-None-Match), checksums and ListObjectsV2".to_owned(),
            source,
        ),
        // An answer that makes no sense with a status that says "done" has been cut off or mangled on the way.
        (200..=299, _) => Failure::Transient(source),
        _ => refused("look up the error; trying again as it is does not help".to_owned(), source),
    }
}

/// What it means that the credentials could not be had.
fn without(credentials: Credentials, proven: bool, source: BoxError) -> Failure {
    match credentials {
        _ if proven => Failure::transient(format!(
            "the AWS credentials could not be renewed: {source}"
        )),
        Credentials::Missing => {
            Failure::refused(format!("no AWS credentials were found: {WHENCE}"), source)
        }
        Credentials::Misconfigured => {
            Failure::refused("correct the AWS profile or the AWS_* variables", source)
        }
        // A role's can come later than the process.
        Credentials::Away => Failure::transient(format!(
            "no AWS credentials were found so far: {WHENCE}: {source}"
        )),
    }
}

fn denied(what: What<'_>, bucket: &str) -> String {
    match what {
        // Without the right to list, S3 answers 403 for objects that are absent.
        What::Get(_) => {
            format!("allow s3:GetObject on the objects and s3:ListBucket on the bucket {bucket}")
        }
        What::Put(_) => "allow s3:PutObject on the objects".to_owned(),
        What::Delete(_) => "allow s3:DeleteObject on the objects".to_owned(),
        What::List(_) => format!("allow s3:ListBucket on the bucket {bucket}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Key;

    fn check(status: u16, code: &str, expected: &str) {
        let key = Key::new("k").expect("a key");
        let answer = Answer {
            status: Some(status),
            code: (!code.is_empty()).then(|| code.to_owned()),
            ..Answer::default()
        };
        let found = match judge(What::Get(&key), "lake", &answer, true, "cause".into()) {
            Failure::NotFound => "not found".to_owned(),
            Failure::Transient(_) => "transient".to_owned(),
            Failure::Refused { remedy, .. } => remedy,
        };
        assert!(found.contains(expected), "{status} {code}: {found}");
    }

    #[test]
    fn only_the_word_no_such_key_means_absent() {
        check(404, "NoSuchKey", "not found");
        check(404, "NoSuchBucket", "create the bucket lake");
        check(404, "", "check the endpoint URL");
        check(404, "NotFound", "check the endpoint URL");
        check(403, "AccessDenied", "s3:ListBucket");
        check(403, "", "s3:ListBucket");
        check(410, "", "look up");
    }

    #[test]
    fn what_can_pass_is_tried_again() {
        for (status, code) in [
            (503, "SlowDown"),
            (503, ""),
            (500, "InternalError"),
            (504, ""),
            (429, "TooManyRequests"),
            (400, "RequestTimeout"),
            (400, "ExpiredToken"),
            (409, "OperationAborted"),
            (200, ""),
        ] {
            check(status, code, "transient");
        }
    }

    /// Where the instance's metadata service refused to give any, only its own words were told.
    #[test]
    fn who_has_no_credentials_hears_where_they_may_come_from() {
        let judged = |credentials, proven| {
            let answer = Answer {
                credentials: Some(credentials),
                ..Answer::default()
            };
            judge(What::List("x"), "lake", &answer, proven, "cause".into())
        };
        match judged(Credentials::Missing, false) {
            Failure::Refused { remedy, .. } => assert!(remedy.contains(WHENCE), "{remedy}"),
            other => panic!("{other:?}"),
        }
        match judged(Credentials::Away, false) {
            Failure::Transient(source) => {
                let text = source.to_string();
                let wanted = [
                    "no AWS credentials",
                    "AWS_PROFILE",
                    "instance or pod role",
                    ": cause",
                ];
                assert!(wanted.iter().all(|part| text.contains(part)), "{text}");
            }
            other => panic!("{other:?}"),
        }
        for credentials in [Credentials::Missing, Credentials::Away] {
            match judged(credentials, true) {
                Failure::Transient(source) => {
                    assert!(source.to_string().contains("renewed: cause"))
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn mistakes_are_named() {
        check(301, "PermanentRedirect", "region");
        check(400, "AuthorizationHeaderMalformed", "region");
        check(403, "RequestTimeTooSkewed", "clock");
        check(403, "SignatureDoesNotMatch", "credentials");
        check(400, "BadDigest", "suspect the local disk");
        check(501, "NotImplemented", "conditional puts");
        check(416, "InvalidRange", "everlog verify");
    }
}
