//! Buffers that play nothing: what each simple rule would have cost.

/// All shadows, one array for each property: the loop over them is vector code.
#[derive(Debug, Clone)]
pub(super) struct Shadows {
    /// The constant distance from the least delay, in milliseconds.
    offset: Vec<f64>,
    /// How many times the largest delay of the last second.
    follow: Vec<f64>,
    /// The delay of the last unit.
    path: Vec<f64>,
    /// 1 when the last unit was there, so that the next one may be waited for.
    patience: Vec<f64>,
    /// Units missed, and delay added up, of the units that are remembered.
    missed: Vec<f64>,
    delay: Vec<f64>,
    units: f64,
    since_fading: u32,
    fading: f64,
}

impl Shadows {
    pub(super) fn new(delay_max: f64) -> Self {
        let mut shadows = Self {
            offset: Vec::new(),
            follow: Vec::new(),
            path: Vec::new(),
            patience: Vec::new(),
            missed: Vec::new(),
            delay: Vec::new(),
            units: PRIOR_UNITS,
            since_fading: 0,
            fading: 0.0,
        };
        let mut trust = 1.0;
        for follow in FOLLOW {
            let mut offset = 1.0;
            while offset < delay_max {
                shadows.offset.push(offset);
                shadows.follow.push(follow);
                // Before anything is known: delays as long as x ms are as rare as one in x, which is about what
                // networks of all kinds have been found to do.
                shadows.missed.push(PRIOR_UNITS * trust / offset);
                shadows.delay.push(PRIOR_UNITS * offset);
                offset *= 1.25;
            }
            trust *= 0.8;
        }
        shadows.path = vec![0.0; shadows.offset.len()];
        shadows.patience = vec![1.0; shadows.offset.len()];
        shadows
    }

    /// How far above the least delay a shadow plays when the largest one of the last second is `peak` above it.
    pub(super) fn distance(&self, shadow: usize, peak: f64) -> f64 {
        self.offset[shadow].max(self.follow[shadow] * peak.max(0.0))
    }

    /// All play a unit that took `transit`; `None` is a lost one, which is nobody's fault. Without a `step` they may jump.
    pub(super) fn play(&mut self, step: Option<f64>, floor: f64, peak: f64, transit: Option<f64>) {
        let came = transit.unwrap_or(f64::INFINITY);
        let counts = if transit.is_some() { 1.0 } else { 0.0 };
        let reach = step.unwrap_or(f64::INFINITY);
        let wait = step.unwrap_or(0.0);
        let above = (peak - floor).max(0.0);
        let shadows = self.offset.iter().zip(&self.follow).zip(&mut self.path).zip(&mut self.patience);
        for ((((offset, follow), path), patience), (missed, delay)) in
            shadows.zip(self.missed.iter_mut().zip(&mut self.delay))
        {
            let target = floor + offset.max(follow * above);
            let low = target.max(*path - reach).min(*path + reach);
            let high = if *patience > 0.0 { low.max(*path + wait) } else { low };
            let is_there = came <= high;
            let played = if is_there { low.max(came) } else { high };
            *path = played;
            *patience = if is_there { 1.0 } else { 0.0 };
            *missed += if is_there { 0.0 } else { counts };
            *delay += played - floor;
        }
        self.units += counts;
        self.fade(wait);
    }

    /// Whom to follow so that `late_max` of the units are late; `late` of `units` have been.
    pub(super) fn choose(&self, late_max: f64, late: u64, units: u64) -> usize {
        // What is left of the budget for the time to come, which is as long as a third of the past and never short.
        let (late, units) = (late as f64, units as f64);
        let ahead = HORIZON_UNITS.max(0.3 * units);
        let left = (late_max * (units + ahead) - late) / ahead;
        let budget = left.max(0.4 * late_max).min(2.5 * late_max) * self.units;
        // Where delays longer than x are as rare as 1 / x, the price at which a part b is late is 1 / b².
        let mut price = PRICE / (late_max * late_max);
        for _ in 0..PRICES_BELOW {
            price /= PRICE_STEP;
        }
        // The lowest price in reach at which the budget is kept. The more a miss costs, the fewer there are.
        let (mut low, mut high) = (0, PRICES_BELOW + PRICES_ABOVE);
        let at = |number: u32| (0..number).fold(price, |price, _| price * PRICE_STEP);
        let mut best = self.cheapest(at(high));
        if self.missed[best] > budget {
            return best;
        }
        while low < high {
            let middle = u32::midpoint(low, high);
            let shadow = self.cheapest(at(middle));
            if self.missed[shadow] > budget {
                low = middle + 1;
            } else {
                (high, best) = (middle, shadow);
            }
        }
        best
    }

    fn cheapest(&self, price: f64) -> usize {
        let costs = self.delay.iter().zip(&self.missed).map(|(delay, missed)| delay + price * missed);
        let mut best = (0, f64::INFINITY);
        for (shadow, cost) in costs.enumerate() {
            if cost < best.1 {
                best = (shadow, cost);
            }
        }
        best.0
    }

    /// What is old counts less: the records follow a network that changes. They remember some 2,000 units and no less than
    /// forty seconds.
    fn fade(&mut self, step: f64) {
        self.since_fading += 1;
        self.fading += step;
        if self.since_fading < FADE_UNITS || self.fading < FADE_STEPS {
            return;
        }
        (self.since_fading, self.fading) = (0, 0.0);
        for value in self.missed.iter_mut().chain(&mut self.delay) {
            *value *= FADE;
        }
        self.units *= FADE;
    }
}

/// The multiples of the last second's largest delay.
const FOLLOW: [f64; 5] = [0.0, 1.0, 2.0, 4.0, 8.0];

/// How many units what is believed in advance counts for.
const PRIOR_UNITS: f64 = 100.0;

/// Losses so far are made up for within so many units at least.
const HORIZON_UNITS: f64 = 1_000.0;

/// The price of a miss in milliseconds, times the square of the budget, and how far from it the price may go: without a
/// limit one long outage would make all later misses unpayable, and the delay would never come down again.
const PRICE: f64 = 0.3;
const PRICE_STEP: f64 = 1.25;
const PRICES_BELOW: u32 = 7;
const PRICES_ABOVE: u32 = 9;

/// Fading is a factor each so many units and so many milliseconds of slope.
const FADE: f64 = 0.984;
const FADE_UNITS: u32 = 32;
const FADE_STEPS: f64 = 64.0;
