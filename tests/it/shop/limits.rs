//! Limits on searches and logins, over both instances together.

use hedgerow::limit::Quota;

use super::service::Service;

#[tokio::test]
async fn searches_are_limited_for_each_address_over_both_instances() {
    let service = Service::start().await;
    let visitor = service.visitor();
    let sql = "SELECT city FROM product WHERE country = 'NO' ORDER BY city LIMIT 1";
    let city: String = service
        .database()
        .query_row(sql, [], |row| row.get(0))
        .expect("a city");
    let search = format!("/search?q={}", city.replace(' ', "+"));
    let mut answers = Vec::new();
    for _ in 0..40 {
        let page = visitor.get_for("192.0.2.7", &search).await;
        answers.push(page.status);
        if page.status == 429 {
            assert_ne!(page.header("retry-after"), "");
        }
    }
    let allowed = answers.iter().filter(|status| **status == 200).count();
    // A burst of 20, and one more for each second that the loop took.
    assert!((20..40).contains(&allowed), "{answers:?}");
    let page = visitor.get_for("192.0.2.8", &search).await;
    assert_eq!(page.status, 200, "another address has a limit of its own");
    assert!(
        page.text.contains(&format!("postcard of {city}")),
        "{}",
        page.text
    );
}

#[tokio::test]
async fn guesses_of_one_password_are_limited_over_both_instances() {
    let service = Service::start().await;
    service.customer("alan").await;
    let visitor = service.visitor();
    let mut answers = Vec::new();
    for guess in 0..12 {
        let form = format!("name=alan&password=guess-{guess}");
        answers.push(visitor.post("/login", &form).await.status);
    }
    // Signing up was one try.
    let expected = [vec![422; 7], vec![429; 5]].concat();
    assert_eq!(answers, expected);
    let other = visitor
        .post("/login", "name=nobody&password=whatever")
        .await;
    assert_eq!(other.status, 422, "another name has a limit of its own");
}

#[tokio::test]
async fn logins_count_for_the_address_that_the_proxy_names() {
    let service = Service::start().await;
    // More than a minute lets through, by a quota that allows it.
    let limits = service.client().rate_limits("login");
    let limits = limits.limit("address", Quota::per_minute(1000).burst(5000));
    let taken = limits.check([("address", "192.0.2.7")]).cost(5000);
    assert!(taken.await.expect("answered").allowed());
    let visitor = service.visitor();
    for (address, status) in [("192.0.2.7", 429), ("192.0.2.8", 422)] {
        let form = "name=nobody&password=whatever";
        let page = visitor.post_for(address, "/login", form).await;
        assert_eq!(page.status, status, "{address}");
    }
}
