//! Certificates before anybody has verified them, and names of identities.

use mesh_agent::model::Identity;
use mesh_agent::pki::identity_of;

/// A certificate (DER), or the text of an identity.
pub fn certificates(input: &[u8]) {
    let named = identity_of(input);
    let written = str::from_utf8(input).ok().and_then(|it| it.parse().ok());
    for identity in named.into_iter().chain(written) {
        let again: Identity = identity.to_string().parse().expect("it was parsed");
        assert_eq!(again, identity);
        let parts = [
            identity.trust_domain(),
            identity.namespace(),
            identity.service_account(),
        ];
        assert!(parts.iter().all(|it| !it.is_empty() && !it.contains('/')));
    }
}
