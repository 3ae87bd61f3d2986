//! Groups whose sides go on apart: whatever was cut, all are one group in the end, and what any side did is known to all.
//!
//! `QUORATE_MERGE_SEEDS=0..500` runs other stories than the check does.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate::Bytes;
use quorate::group::{Builder, Ended, Event, Limits, Merging, Tidings, Told, Total};
use quorate::node::Node;
use quorate::sim::Rng;
use quorate_transports::fault::FaultHandle;
use tests::{Net, everywhere, memory, tcp, within};
use tokio::sync::watch;

/// A page to which everybody may add words: two of them are joined by taking the words of both.
#[derive(Debug, Clone, Default)]
struct Page {
    words: BTreeSet<String>,
    /// Every word that was ever on it here.
    seen: BTreeSet<String>,
    side: u64,
    members: usize,
    parted: usize,
}

impl Page {
    fn add(&mut self, words: impl IntoIterator<Item = String>) {
        let words: Vec<_> = words.into_iter().collect();
        self.seen.extend(words.iter().cloned());
        self.words.extend(words);
    }

    fn state(&self) -> Bytes {
        self.words.iter().cloned().collect::<Vec<_>>().join(" ").into()
    }
}

fn words(state: &[u8]) -> impl Iterator<Item = String> {
    std::str::from_utf8(state).expect("words").split_whitespace().map(str::to_owned)
}

/// Reads what a member is told. One that is forgetful does not join what other sides did.
async fn keep(mut tidings: Tidings, page: watch::Sender<Page>, is_forgetful: bool) {
    while let Some(told) = tidings.next().await {
        match told {
            Told::Event(Event::View(view)) => page.send_modify(|page| {
                (page.side, page.members) = (view.id.group, view.members.len());
            }),
            Told::Event(Event::Message { payload, .. }) => page.send_modify(|page| page.add(words(&payload))),
            Told::Event(Event::StateWanted(request)) => request.answer(page.borrow().state()),
            Told::Event(Event::State(state)) => page.send_modify(|page| {
                page.words.clear();
                page.add(words(&state));
            }),
            Told::Offer(request) => request.answer(page.borrow().state()),
            Told::Merge { state, .. } if !is_forgetful => page.send_modify(|page| page.add(words(&state))),
            Told::Parted => page.send_modify(|page| page.parted += 1),
            Told::Event(Event::Ended(why)) => assert_eq!(why, Some(Ended::Left), "it goes on"),
            Told::Unmerged(state) => panic!("{} bytes fit", state.len()),
            _ => {}
        }
    }
}

struct Member {
    merging: Merging<Total>,
    page: watch::Receiver<Page>,
    _node: Node,
}

impl Member {
    async fn until(&mut self, is_so: impl Fn(&Page) -> bool) -> Page {
        within(self.page.wait_for(|page| is_so(page))).await.expect("it reads").clone()
    }

    async fn write(&self, word: &str) {
        within(self.merging.cast(word.as_bytes())).await.expect("it goes on");
    }
}

async fn members(
    net: &Net,
    faults: &FaultHandle,
    count: u64,
    patience: Duration,
    forgetful: bool,
) -> Vec<Member> {
    let mut limits = Limits::default();
    limits.suspect_after = patience;
    limits.join_within = patience * 4;
    let mut members = Vec::new();
    let mut contacts = Vec::new();
    for id in 1..=count {
        let node = Node::builder().id(id).listen(net.listen()).transport(faults.wrap(id, net.transport()));
        let node = node.start().await.expect("the node starts");
        let builder = Builder::total("page").limits(limits.clone());
        let (merging, tidings) = if contacts.is_empty() {
            contacts = node.addresses();
            within(Merging::create(builder, &node)).await.expect("founds the group")
        } else {
            within(Merging::join(builder, &node, &contacts)).await.expect("joins the group")
        };
        let (sender, page) = watch::channel(Page::default());
        tokio::spawn(keep(tidings, sender, forgetful));
        members.push(Member { merging, page, _node: node });
    }
    for member in &mut members {
        member.until(|page| page.members == count as usize).await;
    }
    members
}

async fn both_sides_go_on(net: Net) {
    let faults = FaultHandle::new(1);
    let mut all = members(&net, &faults, 5, Duration::from_secs(2), false).await;
    all[4].write("before").await;
    for member in &mut all {
        member.until(|page| page.words.contains("before")).await;
    }
    let first = all[0].page.borrow().side;

    faults.change(|network| network.partition(&[&[1, 2, 3], &[4, 5]]));
    for member in &mut all[3..] {
        let apart = member.until(|page| page.side != first && page.members == 2).await;
        assert!(apart.words.contains("before"), "{net:?}");
    }
    all[3].write("right").await;
    for member in &mut all[..3] {
        member.until(|page| page.members == 3).await;
    }
    all[1].write("left").await;
    for member in &mut all[..3] {
        let page = member.until(|page| page.words.contains("left")).await;
        assert!(!page.words.contains("right") && page.side == first && page.parted == 0, "{net:?}: {page:?}");
    }
    for member in &mut all[3..] {
        let page = member.until(|page| page.words.contains("right")).await;
        assert!(!page.words.contains("left"), "{net:?}: {page:?}");
    }

    faults.change(|network| network.heal_all());
    for member in &mut all {
        let page = member.until(|page| page.members == 5 && page.words.len() == 3).await;
        assert_eq!(page.side, first, "{net:?}: the side with the quorum is the senior one");
    }
    // It is one group like any other.
    all[4].write("after").await;
    for member in &mut all {
        member.until(|page| page.words.contains("after")).await;
    }
    let last = all.pop().expect("the fifth");
    within(last.merging.leave(Duration::from_secs(20))).await.expect("leaves in good order");
}

#[tokio::test(flavor = "multi_thread")]
async fn g01_both_sides_of_a_cut_go_on_and_are_one_group_when_they_meet_again() {
    everywhere([memory(), tcp()], both_sides_go_on).await;
}

/// Cuts drawn from a seed, in virtual time; what is wrong in the end, if anything is.
fn story(seed: u64, is_forgetful: bool) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut rng = Rng::new(seed);
        let count = rng.between(3, 5);
        let faults = FaultHandle::new(seed);
        let mut all = members(&memory(), &faults, count, Duration::from_secs(1), is_forgetful).await;
        let mut written = 0;
        for _ in 0..6 {
            let parts = rng.between(1, 3);
            let places: Vec<u64> = (0..count).map(|_| rng.below(parts)).collect();
            let of =
                |part: u64| (1..=count).filter(|id| places[*id as usize - 1] == part).collect::<Vec<_>>();
            let sets: Vec<Vec<u64>> = (0..parts).map(of).filter(|set| !set.is_empty()).collect();
            let sets: Vec<&[u64]> = sets.iter().map(Vec::as_slice).collect();
            faults.change(|network| {
                network.heal_all();
                network.partition(&sets);
            });
            for _ in 0..rng.between(2, 12) {
                let who = rng.below(count) as usize;
                written += 1;
                // Between two sides a word waits for the next one: the story goes on.
                let word = format!("{written}");
                let _ =
                    tokio::time::timeout(Duration::from_millis(10), all[who].merging.cast(word.as_bytes()))
                        .await;
                tokio::time::sleep(rng.duration(Duration::ZERO..Duration::from_millis(1500))).await;
            }
        }
        faults.change(|network| network.heal_all());
        tokio::time::sleep(Duration::from_secs(60)).await;
        let pages: Vec<Page> = all.iter_mut().map(|member| member.page.borrow().clone()).collect();
        let first = &pages[0];
        for (place, page) in pages.iter().enumerate() {
            let told = || format!("seed {seed}: member {} has {page:?}, the first {first:?}", place + 1);
            if page.side != first.side || page.members != count as usize || page.words != first.words {
                return Err(told());
            }
            if let Some(lost) = page.seen.difference(&first.words).next() {
                return Err(format!("{}; {lost:?} is lost", told()));
            }
        }
        Ok(())
    })
}

fn seeds() -> std::ops::Range<u64> {
    let asked = std::env::var("QUORATE_MERGE_SEEDS").ok();
    let range = asked.as_deref().and_then(|range| range.split_once(".."));
    range.map_or(0..SEEDS, |(from, to)| from.parse().unwrap()..to.parse().unwrap())
}

#[test]
fn g01_whatever_was_cut_all_are_one_group_in_the_end_and_what_each_side_did_is_known_to_all() {
    for seed in seeds() {
        if let Err(wrong) = story(seed, false) {
            panic!("{wrong}\nrun it again: QUORATE_MERGE_SEEDS={seed}..{}", seed + 1);
        }
    }
}

/// The story above would notice.
#[test]
fn g01_an_application_that_does_not_join_what_other_sides_did_is_found_out() {
    assert!((0..SEEDS).any(|seed| story(seed, true).is_err()), "nobody lost anything");
}

const SEEDS: u64 = 4;
