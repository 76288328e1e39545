//! `Problem`: why a request is not answered as it asked, as a page for people.
//!
//! Invariant: a handler never panics over what others do, and no visitor is shown the text of an
//! error.

use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, HeaderValue, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use hedgerow::session::Trouble;
use tower_sessions::session;

use crate::view;

#[derive(Debug)]
pub(crate) enum Problem {
    NotFound,
    Forbidden,
    /// The form was not filled in as it should be. The text says what is wrong.
    BadForm(&'static str),
    /// What the visitor wanted is no longer so. The text says what has changed.
    Changed(&'static str),
    TooOften(Duration),
    /// Redis is out, or too slow. The text says what that means for the visitor.
    Unavailable(&'static str),
    /// A fault of this service.
    Fault(anyhow::Error),
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, title, text) = match &self {
            Self::NotFound => (
                StatusCode::NOT_FOUND,
                "There is nothing here",
                "Maybe the address was mistyped, or the postcard is no longer sold.",
            ),
            Self::Forbidden => (
                StatusCode::FORBIDDEN,
                "This is not for you",
                "Log in as somebody who may see this page.",
            ),
            Self::BadForm(text) => (StatusCode::UNPROCESSABLE_ENTITY, "That did not work", *text),
            Self::Changed(text) => (StatusCode::CONFLICT, "Something has changed", *text),
            Self::TooOften(_) => (
                StatusCode::TOO_MANY_REQUESTS,
                "Please wait a little",
                "This was tried too often. It will work again soon.",
            ),
            Self::Unavailable(text) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "A short interruption",
                *text,
            ),
            Self::Fault(error) => {
                eprintln!("shop: {error:#}");
                (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "Something went wrong",
                    "It is our fault, and it was noted. Please try again.",
                )
            }
        };
        let mut response = (status, view::message(title, text)).into_response();
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let wait = match &self {
            Self::TooOften(wait) => Some(wait.as_secs() + 1),
            Self::Unavailable(_) => Some(2),
            _ => None,
        };
        if let Some(seconds) = wait {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        Self::Fault(error)
    }
}

impl From<hedgerow::Error> for Problem {
    fn from(error: hedgerow::Error) -> Self {
        match error.kind().is_outage() {
            true => Self::Unavailable("This part of the shop is away for a moment."),
            false => Self::Fault(error.into()),
        }
    }
}

impl From<session::Error> for Problem {
    fn from(error: session::Error) -> Self {
        match Trouble::from(&error) {
            Trouble::Unavailable => Self::no_sessions(),
            _ => Self::Fault(error.into()),
        }
    }
}

impl From<tower_sessions::session_store::Error> for Problem {
    fn from(error: tower_sessions::session_store::Error) -> Self {
        session::Error::from(error).into()
    }
}

impl Problem {
    /// An outage is not a logout: the same cookie is good afterwards.
    pub(crate) fn no_sessions() -> Self {
        Self::Unavailable(
            "We cannot look up who you are just now. You are still logged in: try again in a \
             moment. Meanwhile, you can look around.",
        )
    }
}
