//! CORE: takes out what looks like a secret, whoever wrote it there.

use std::borrow::Cow;

/// What stands where a secret was.
const REMOVED: &str = "[removed]";

/// A text without private keys in PEM and without signed tokens (JWT).
pub(super) fn without_secrets(text: &str) -> Cow<'_, str> {
    let text = without_keys(text);
    match without_tokens(&text) {
        Some(clean) => Cow::Owned(clean),
        None => text,
    }
}

/// Without everything from a private key's first line to the last, or to the end where that is missing.
fn without_keys(text: &str) -> Cow<'_, str> {
    const END: &str = "-----END ";
    const DASHES: &str = "-----";
    let mut rest = text;
    let mut clean = String::new();
    while let Some(at) = first_key(rest) {
        clean.push_str(&rest[..at]);
        clean.push_str(REMOVED);
        let behind = &rest[at..];
        rest = behind
            .find(END)
            .map(|end| &behind[end + END.len()..])
            .and_then(|label| Some(&label[label.find(DASHES)? + DASHES.len()..]))
            .unwrap_or_default();
    }
    if clean.is_empty() && rest.len() == text.len() {
        return Cow::Borrowed(text);
    }
    Cow::Owned(clean + rest)
}

/// Where the first private key begins.
fn first_key(text: &str) -> Option<usize> {
    const BEGIN: &str = "-----BEGIN ";
    let begins = text.match_indices(BEGIN).map(|(at, _)| at);
    let is_key = |at: &usize| {
        let label = &text[at + BEGIN.len()..];
        let label = label.split("-----").next().unwrap_or_default();
        label.ends_with("PRIVATE KEY")
    };
    begins.into_iter().find(is_key)
}

/// Without words of three parts of which the first is a JSON object in Base64; none where there are none.
fn without_tokens(text: &str) -> Option<String> {
    const BEGIN: &str = "eyJ";
    let mut clean = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let word = &rest[at..];
        let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.=".contains(c);
        let length = word.find(|c| !is_part(c)).unwrap_or(word.len());
        let is_token = word[..length].matches('.').count() >= 2;
        clean.push_str(&rest[..at]);
        clean.push_str(if is_token { REMOVED } else { &word[..length] });
        rest = &word[length..];
    }
    (rest.len() != text.len()).then(|| clean + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_and_nothing_else() {
        let check = |text: &str, clean: &str| assert_eq!(without_secrets(text), clean, "{text}");
        let certificate = "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n";
        check(certificate, certificate);
        check("eyJust words. and. dots", "eyJust words. and. dots");
        check("", "");
        let key = "a\n-----BEGIN PRIVATE KEY-----\nMIG\n-----END PRIVATE KEY-----\nb";
        check(key, "a\n[removed]\nb");
        let two = format!("{certificate}{key}{}", key.replace("PRIVATE", "EC PRIVATE"));
        check(
            &two,
            &format!("{certificate}a\n[removed]\nba\n[removed]\nb"),
        );
        // As it stands in JSON, and cut off.
        check(
            "{\"pem\": \"-----BEGIN PRIVATE KEY-----\\nMIG\\n-----END PRIVATE KEY-----\\n\"}",
            "{\"pem\": \"[removed]\\n\"}",
        );
        check("x -----BEGIN RSA PRIVATE KEY-----\nMIG", "x [removed]");
        check("Bearer eyJhbGciOi.eyJpc3Mi.c2ln-_x!", "Bearer [removed]!");
        check(
            "\"eyJa.eyJb.c\" and eyJa.eyJb.c",
            "\"[removed]\" and [removed]",
        );
    }
}
