//! Logins and logouts, over both instances.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinSet;

use super::service::{PASSWORD, Service};
use crate::support::wait::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logout_is_final_for_requests_under_way_and_for_those_to_come() {
    let service = Service::start().await;
    service.customer("ada").await;
    for _ in 0..5 {
        let visitor = service.visitor();
        let login = visitor
            .post("/login", &format!("name=ada&password={PASSWORD}"))
            .await;
        let cookie = login.cookie();
        let is_out = Arc::new(AtomicBool::new(false));
        let mut requests = JoinSet::new();
        for _ in 0..6 {
            // These send the old cookie whatever they are answered.
            let (others, cookie, is_out) = (service.visitor(), cookie.clone(), is_out.clone());
            requests.spawn(async move {
                let mut seen = 0;
                loop {
                    let after_it = is_out.load(Ordering::SeqCst);
                    let page = others.get_with(&cookie, "/account").await;
                    if after_it {
                        assert!(page.asks_for_login(), "{} {}", page.status, page.text);
                        return seen;
                    }
                    assert!(page.status == 200 || page.asks_for_login(), "{}", page.text);
                    seen += usize::from(page.status == 200);
                }
            });
        }
        until("somebody has seen the account", async || {
            visitor.get("/account").await.status == 200
        })
        .await;
        let logout = visitor.post("/logout", "").await;
        assert_eq!(logout.status, 303, "{}", logout.text);
        is_out.store(true, Ordering::SeqCst);
        while let Some(request) = requests.join_next().await {
            request.expect("nobody saw the account afterwards");
        }
        let page = service.visitor().get_with(&cookie, "/account").await;
        assert!(
            page.asks_for_login(),
            "what ended last has brought nothing back"
        );
    }
}

#[tokio::test]
async fn a_customer_sees_where_they_are_logged_in_and_ends_it_there_or_everywhere() {
    let service = Service::start().await;
    let desk = service.customer("grace").await;
    let form = format!("name=grace&password={PASSWORD}");
    let (phone, kiosk) = (service.visitor(), service.visitor());
    for visitor in [&phone, &kiosk] {
        assert_eq!(visitor.post("/login", &form).await.status, 303);
    }

    let page = desk.get("/account").await;
    assert_eq!(page.text.matches("last seen").count(), 3, "{}", page.text);
    assert_eq!(page.header("cache-control"), "no-store");
    let digest = format!("digest={}", page.field("digest"));
    assert_eq!(desk.post("/account/end-session", &digest).await.status, 303);
    let out = [phone.get("/account").await, kiosk.get("/account").await];
    let out = out.iter().filter(|page| page.asks_for_login()).count();
    assert_eq!(out, 1, "the one that was named");
    assert_eq!(desk.get("/account").await.status, 200);

    assert_eq!(desk.post("/logout-everywhere", "").await.status, 303);
    for visitor in [&desk, &phone, &kiosk] {
        assert!(visitor.get("/account").await.asks_for_login());
    }
}

#[tokio::test]
async fn public_pages_set_no_cookie_and_forms_of_other_sites_are_refused() {
    let service = Service::start().await;
    let customer = service.customer("linus").await;
    let page = customer.get("/").await;
    assert_eq!((page.status, page.cookie().as_str()), (200, ""));
    let page = customer
        .post_from("https://evil.example", "/logout", "")
        .await;
    assert_eq!(page.status, 403);
    assert_eq!(
        customer.get("/account").await.status,
        200,
        "still logged in"
    );
}
