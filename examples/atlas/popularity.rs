//! Which page is asked for: a few are hot, most are hardly ever seen (Zipf's law).

use rand::RngExt;

use crate::database::Catalogue;
use crate::pages::Subject;

/// Draws subjects and countries by their popularity. The same in every worker.
pub(crate) struct Popularity {
    catalogue: Catalogue,
    cities: Zipf,
    countries: Zipf,
}

impl Popularity {
    pub(crate) fn new(catalogue: Catalogue) -> Self {
        Self {
            cities: Zipf::new(catalogue.cities.len()),
            countries: Zipf::new(catalogue.countries.len()),
            catalogue,
        }
    }

    /// The page that the next visitor asks for.
    pub(crate) fn subject(&self) -> Subject {
        if rand::rng().random_bool(COUNTRY_SHARE) {
            return Subject::country(self.country());
        }
        let rank = self.cities.draw();
        let (id, country) = &self.catalogue.cities[scatter(rank, self.catalogue.cities.len())];
        Subject::city(*id, country)
    }

    /// The country that the next editor turns to.
    pub(crate) fn country(&self) -> &str {
        let rank = self.countries.draw();
        &self.catalogue.countries[scatter(rank, self.catalogue.countries.len())]
    }
}

/// Ranks with probability proportional to 1 / (rank + 1)^EXPONENT.
struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    fn new(ranks: usize) -> Self {
        let mut sum = 0.0;
        let cumulative = (1..=ranks)
            .map(|rank| {
                sum += (rank as f64).powf(-EXPONENT);
                sum
            })
            .collect();
        Self { cumulative }
    }

    fn draw(&self) -> usize {
        let total = self.cumulative.last().copied().unwrap_or_default();
        let point = rand::rng().random::<f64>() * total;
        let rank = self.cumulative.partition_point(|&sum| sum <= point);
        rank.min(self.cumulative.len() - 1)
    }
}

/// Neighbours in rank are no neighbours in the file, which is sorted by country.
fn scatter(rank: usize, len: usize) -> usize {
    // A prime larger than any factor of either length: the map is one to one.
    (rank * 7919) % len
}

const EXPONENT: f64 = 1.3;
/// Share of the requests that ask for a country rather than a city.
const COUNTRY_SHARE: f64 = 0.4;
