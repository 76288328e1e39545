//! `Url`: the parts of a URL that the caller gave.
//!
//! Invariant: every part of a URL is either used or refused, and no error repeats a part that may
//! be a password.
//!
//! [`Endpoint`](super::endpoint::Endpoint) parses each URL with it.

use std::str::Utf8Error;

use super::credentials::Credentials;
use crate::error::{Error, Result};

/// The parts of a URL.
#[derive(Default)]
pub(crate) struct Url {
    /// The scheme and the server alone, for the driver to parse.
    pub(crate) server: String,
    pub(crate) encryption: Encryption,
    pub(crate) db: Option<i64>,
    user: Option<String>,
    password: Option<String>,
}

/// Whether a URL asks for TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Encryption {
    Tls,
    #[default]
    None,
}

impl Url {
    /// Splits a URL into its parts.
    ///
    /// # Errors
    /// `InvalidInput` for anything that would not be used. It does not repeat the URL.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.contains('#') {
            return Err(Error::invalid(
                "the URL has a fragment (#), which means nothing here; TLS is always verified, and a # \
                 in a password is written %23: redis://[[user]:password@]host[:port][/db]",
            ));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(not_understood)?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let scheme = scheme.to_ascii_lowercase();
        let mut url = Self::default();
        let plain = match scheme.as_str() {
            "rediss" | "valkeys" => {
                url.encryption = Encryption::Tls;
                "redis"
            }
            other => other,
        };
        if plain.contains("unix") {
            url.server = format!("{plain}://{place}");
        } else {
            let (authority, path) = place.split_once('/').unwrap_or((place, ""));
            // The last `@` separates: a password may hold one.
            let (login, host) = match authority.rsplit_once('@') {
                Some((login, host)) => (Some(login), host),
                // A `/` or `?` in a password ends the authority early. Without this
                // check a part of the password would be taken for the host.
                None if place.contains('@') || query.contains('@') => {
                    return Err(Error::invalid(
                        "the URL has an @ behind its host; a / in a user or password is written %2F, \
                         a ? is written %3F: redis://[[user]:password@]host[:port][/db]",
                    ));
                }
                None => (None, authority),
            };
            url.server = format!("{plain}://{host}");
            if let Some(login) = login {
                let (user, password) = match login.split_once(':') {
                    Some((user, password)) => (user, Some(password)),
                    None => (login, None),
                };
                if !user.is_empty() {
                    url.user = Some(decoded(user).map_err(|_| not_understood())?);
                }
                let password = password.map(decoded).transpose();
                url.password = password.map_err(|_| not_understood())?;
            }
            let db = path.trim_end_matches('/');
            if !db.is_empty() {
                url.db = Some(database(db)?);
            }
        }
        url.parameters(query)?;
        Ok(url)
    }

    /// Parses the parameters after the `?`.
    fn parameters(&mut self, query: &str) -> Result<()> {
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(&value.replace('+', " ")).map_err(|_| not_understood())?;
            match name {
                "db" => once(name, &mut self.db, database(&value)?)?,
                "user" | "username" => once(name, &mut self.user, value)?,
                "pass" | "password" => once(name, &mut self.password, value)?,
                "ssl" | "tls" => self.encryption = self.encryption(name, &value)?,
                "protocol" if matches!(value.as_str(), "3" | "resp3") => {}
                "protocol" => {
                    return Err(Error::invalid(
                        "the URL asks for another protocol than RESP3, which hedgerow needs; leave \
                         `protocol` out",
                    ));
                }
                // A parameter that is ignored would be a silent fault: another database, or no TLS.
                _ => return Err(unknown(name)),
            }
        }
        Ok(())
    }

    /// Parses the value of `tls` or `ssl`.
    // No value may turn the encryption of `rediss://` off unnoticed.
    fn encryption(&self, name: &str, value: &str) -> Result<Encryption> {
        match (value, self.encryption) {
            ("true" | "required", _) => Ok(Encryption::Tls),
            ("false", Encryption::None) => Ok(Encryption::None),
            ("false", Encryption::Tls) => Err(Error::invalid(format!(
                "the URL asks for TLS and says {name}=false; use redis:// for a plain connection"
            ))),
            _ => Err(Error::invalid(format!(
                "the URL has a value of `{name}` that is not understood; use {name}=true, or rediss://"
            ))),
        }
    }

    /// The credentials in the URL, if there are any.
    pub(crate) fn credentials(&self) -> Result<Option<Credentials>> {
        match (&self.user, &self.password) {
            (None, None) => Ok(None),
            (None, Some(password)) if password.is_empty() => Ok(None),
            (None, Some(password)) => Ok(Some(Credentials::password(password))),
            (Some(user), Some(password)) => Ok(Some(Credentials::user(user, password))),
            // As often as not this is a password in the position of the user.
            (Some(_), None) => Err(Error::invalid(
                "the URL names a user and no password; use redis://user:password@host, \
                 redis://:password@host for the default user, or ClientBuilder::credentials",
            )),
        }
    }
}

/// The error does not repeat the URL, which may hold a password.
pub(crate) fn not_understood() -> Error {
    Error::invalid(
        "the URL is not understood; use redis://[[user]:password@]host[:port][/db], rediss:// with TLS, or unix:///path",
    )
}

/// Sets a value that the URL may give only once, or twice with the same value.
fn once<T: PartialEq>(name: &str, place: &mut Option<T>, value: T) -> Result<()> {
    match place.replace(value) {
        None => Ok(()),
        Some(before) if place.as_ref() == Some(&before) => Ok(()),
        Some(_) => Err(Error::invalid(format!(
            "the URL has two different values of `{name}`; give one"
        ))),
    }
}

fn database(text: &str) -> Result<i64> {
    let number: Option<i64> = text.parse().ok();
    number.filter(|db| *db >= 0).ok_or_else(not_understood)
}

/// The error for an unknown parameter. It names the parameter, unless that may be a piece of a
/// password.
fn unknown(name: &str) -> Error {
    // A `?` in a password would make its rest look like parameters.
    let harmless = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match name.len() <= 32 && name.chars().all(harmless) {
        true => Error::invalid(format!(
            "the URL has a parameter `{name}`, which is not known; db, user, password and tls are, \
             everything else is set by ClientBuilder"
        )),
        false => Error::invalid(
            "the URL has a parameter that is not known; db, user, password and tls are, everything \
             else is set by ClientBuilder",
        ),
    }
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> Result<String, Utf8Error> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 3);
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (bytes[at], byte) {
            (b'%', Some(byte)) => {
                plain.push(byte);
                at += 3;
            }
            (byte, _) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(plain).map_err(|error| error.utf8_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Server, TLS, database, user and password.
    type Parts<'t> = (&'t str, bool, Option<i64>, Option<&'t str>, Option<&'t str>);

    #[test]
    fn what_is_usual_is_heeded() {
        let cases: &[(&str, Parts<'_>)] = &[
            ("redis://h", ("redis://h", false, None, None, None)),
            ("redis://h:7/3", ("redis://h:7", false, Some(3), None, None)),
            ("redis://h/", ("redis://h", false, None, None, None)),
            ("redis://h?db=3", ("redis://h", false, Some(3), None, None)),
            (
                "redis://h/3?db=3",
                ("redis://h", false, Some(3), None, None),
            ),
            ("Rediss://h", ("redis://h", true, None, None, None)),
            ("redis://h?ssl=true", ("redis://h", true, None, None, None)),
            (
                "redis://h?tls=required",
                ("redis://h", true, None, None, None),
            ),
            ("rediss://h?tls=true", ("redis://h", true, None, None, None)),
            (
                "redis://h?ssl=false",
                ("redis://h", false, None, None, None),
            ),
            (
                "redis://h?protocol=resp3",
                ("redis://h", false, None, None, None),
            ),
            (
                "redis://:p%40@h",
                ("redis://h", false, None, None, Some("p@")),
            ),
            (
                "redis://u:p@h",
                ("redis://h", false, None, Some("u"), Some("p")),
            ),
            (
                "redis://u:@h",
                ("redis://h", false, None, Some("u"), Some("")),
            ),
            (
                "redis://h?username=u&password=p%26",
                ("redis://h", false, None, Some("u"), Some("p&")),
            ),
            (
                "unix:///run/s?db=1&user=u&pass=p%2F",
                ("unix:///run/s", false, Some(1), Some("u"), Some("p/")),
            ),
            (
                "redis://[::1]:7",
                ("redis://[::1]:7", false, None, None, None),
            ),
        ];
        for (text, (server, tls, db, user, password)) in cases {
            let url = Url::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(url.server, *server, "{text}");
            assert_eq!(url.encryption == Encryption::Tls, *tls, "{text}");
            assert_eq!(url.db, *db, "{text}");
            assert_eq!(url.user.as_deref(), *user, "{text}");
            assert_eq!(url.password.as_deref(), *password, "{text}");
        }
    }

    #[test]
    fn the_rest_is_refused_by_name() {
        for (text, word) in [
            ("redis://h?timeout=3", "`timeout`"),
            ("redis://h?ssl_cert_reqs=none", "`ssl_cert_reqs`"),
            ("redis://h?db=1&db=2", "`db`"),
            ("redis://h/1?db=2", "`db`"),
            ("redis://:a@h?password=b", "`password`"),
            ("redis://h?tls=maybe", "tls=true"),
            ("rediss://h?ssl=false", "ssl=false"),
            ("redis://h?protocol=resp2", "RESP3"),
            ("redis://h?db=-1", "not understood"),
            ("redis://h/one", "not understood"),
            ("redis://:pa?ss=word@h", "%3F"),
            ("redis://:pa/ss@h", "%2F"),
        ] {
            let error = Url::parse(text).err().unwrap_or_else(|| panic!("{text}"));
            let told = error.to_string();
            assert!(told.contains(word), "{text}: {told}");
            assert!(!told.contains("ss=word") && !told.contains("pa/"), "{told}");
        }
        let told = Url::parse("redis://h?s%20ecret")
            .err()
            .map(|it| it.to_string());
        assert!(told.is_some_and(|told| !told.contains("ecret")));
    }

    #[test]
    fn a_user_needs_a_password_and_the_default_user_none() {
        for (text, named) in [
            ("redis://h", false),
            ("redis://:p@h", true),
            ("redis://:@h", false),
        ] {
            let url = Url::parse(text).expect("a good URL");
            assert_eq!(url.credentials().expect("clear").is_some(), named, "{text}");
        }
        for text in ["redis://bob@h", "redis://secret@h", "redis://h?user=bob"] {
            let url = Url::parse(text).expect("the parts are there");
            let told = url.credentials().expect_err(text).to_string();
            assert!(told.contains("names a user and no password"), "{told}");
            assert!(!told.contains("bob") && !told.contains("secret"), "{told}");
        }
    }
}
