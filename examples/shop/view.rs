//! How pages look: templates, and what all of them show.
//!
//! Invariant: templates are compiled once, and escape whatever is put into them.

use std::sync::LazyLock;

use anyhow::Context as _;
use axum::response::Html;
use minijinja::{Environment, Value, context};

use crate::problem::Problem;
use crate::state::Shop;
use crate::store::{Order, Product, country_name};

/// Renders a page, with its footer.
pub(crate) fn page(shop: &Shop, template: &str, content: Value) -> Result<Html<String>, Problem> {
    let now = time::OffsetDateTime::now_utc();
    let footer = context! {
        instance => &*shop.name,
        time => format!("{:02}:{:02}:{:02}", now.hour(), now.minute(), now.second()),
        renders => shop.one_more_render(),
        redis_is_out => shop.redis.is_out(),
    };
    let all = context! { footer, ..content };
    Ok(Html(render(template, all)?))
}

/// Renders a page that says only something.
pub(crate) fn message(title: &str, text: &str) -> Html<String> {
    let rendered = render("message.html", context! { title, text });
    Html(rendered.unwrap_or_else(|_| text.to_owned()))
}

pub(crate) fn product(product: &Product) -> Value {
    context! {
        id => product.id,
        city => &product.city,
        region => &product.region,
        country => &product.country,
        lat => format!("{:.2}", product.lat),
        lng => format!("{:.2}", product.lng),
        cents => product.cents,
        left => product.left,
        picture => picture(product),
    }
}

pub(crate) fn products(listing: &[Product]) -> Value {
    listing.iter().map(product).collect()
}

pub(crate) fn order(order: &Order) -> Value {
    context! {
        token => &order.token,
        product => order.product,
        city => &order.city,
        amount => order.amount,
        cents => order.cents,
    }
}

/// What a drawing of the city is made of: warm or cold by its latitude, by day or evening by its
/// longitude.
fn picture(product: &Product) -> Value {
    let warmth = 1.0 - (product.lat.abs() / 66.0).min(1.0);
    let east = (product.lng + 180.0) / 360.0;
    let hill = |salt: i64| 70 + (product.id * salt) % 60;
    context! {
        sky => (205.0 + 20.0 * warmth) as i64,
        // From blue by rose to amber.
        horizon => (215.0 + 180.0 * warmth) as i64 % 360,
        land => (165.0 - 135.0 * warmth) as i64,
        sun_x => (30.0 + 240.0 * east) as i64,
        sun_y => (112.0 - 28.0 * warmth) as i64,
        hills => [hill(37), hill(53), hill(71), hill(91)],
    }
}

fn render(template: &str, content: Value) -> anyhow::Result<String> {
    let template = TEMPLATES.get_template(template);
    template
        .and_then(|it| it.render(content))
        .context("a page cannot be rendered")
}

static TEMPLATES: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    for (name, source) in SOURCES {
        let added = environment.add_template(name, source);
        added.expect("the templates are part of the program, and every test renders them");
    }
    environment.add_filter("money", |cents: i64| {
        format!("€{}.{:02}", cents / 100, cents % 100)
    });
    environment.add_filter("country", |code: String| {
        country_name(&code).map_or(code, str::to_owned)
    });
    environment
});

const SOURCES: [(&str, &str); 11] = [
    ("account.html", include_str!("templates/account.html")),
    ("admin.html", include_str!("templates/admin.html")),
    ("base.html", include_str!("templates/base.html")),
    ("buy.html", include_str!("templates/buy.html")),
    ("front.html", include_str!("templates/front.html")),
    ("list.html", include_str!("templates/list.html")),
    ("login.html", include_str!("templates/login.html")),
    ("message.html", include_str!("templates/message.html")),
    ("order.html", include_str!("templates/order.html")),
    ("postcard.html", include_str!("templates/postcard.html")),
    ("product.html", include_str!("templates/product.html")),
];
