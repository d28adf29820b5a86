//! Loading published policies: once for all that wait, never for another account, and within bounds.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::json;
use stage0_backplane::Backplane;
use stage0_backplane::embedded::Bus;
use stage0_contract::{ActivePolicies, PolicyBundle, PolicyFiles, Refusal};

use super::kept::{BOUNDS, FAILED_TTL, INHERITED_BYTES};
use super::*;

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

fn account(text: &str) -> AccountId {
    AccountId::parse(text).unwrap()
}

fn version(text: &str) -> PolicyVersion {
    PolicyVersion::parse(text).unwrap()
}

/// A pack that adds nothing to the baseline.
fn bundle(name: &str) -> PolicyBundle {
    let manifest = format!("name = \"{name}\"\nversion = \"1.0.0\"\nextends = \"baseline@2\"\n");
    PolicyBundle { packs: vec![PolicyFiles { files: BTreeMap::from([("pack.toml".to_owned(), manifest)]) }] }
}

fn soon() -> Instant {
    Instant::now() + WAIT_TIMEOUT
}

/// A keystore that has these policies of these accounts, and counts what it is asked.
struct Keystore {
    backplane: Backplane,
    policies: Vec<(Option<AccountId>, PolicyVersion, PolicyBundle)>,
    asked: Rc<Cell<usize>>,
}

impl Keystore {
    fn new(bus: &Bus, policies: Vec<(Option<AccountId>, PolicyVersion, PolicyBundle)>) -> Self {
        Self { backplane: bus.connect(), policies, asked: Rc::default() }
    }

    /// Answers while `work` runs.
    async fn beside<T>(self, work: impl Future<Output = T>) -> T {
        let mut served = self.backplane.requests.serve::<FetchPolicy>().await.unwrap();
        let serve = async {
            while let Some(message) = served.next().await {
                self.asked.set(self.asked.get() + 1);
                let (wanted, _, responder) = message.into_parts();
                let is_it = |(account, version, _): &&(Option<AccountId>, PolicyVersion, PolicyBundle)| {
                    *account == wanted.account && *version == wanted.version
                };
                let reply = match self.policies.iter().find(is_it) {
                    Some((_, version, bundle)) => {
                        ManageReply::Done(FetchedPolicy { version: version.clone(), bundle: bundle.clone() })
                    }
                    None => ManageReply::Refused(Refusal::NotFound),
                };
                responder.answer(&reply).await;
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            () = serve => panic!("the keystore ended"),
        }
    }
}

fn published(bus: &Bus) -> Published {
    Published::new(SharedPolicies::new(), bus.connect().requests)
}

#[tokio::test]
async fn all_who_wait_for_a_version_get_the_one_pack_that_is_loaded_for_them() {
    let (bus, ours) = (Bus::new(), bundle("ours"));
    let expected = Pack::from_bundle(&ours).unwrap().version().clone();
    let keystore = Keystore::new(&bus, vec![(Some(account("acc")), expected.clone(), ours)]);
    let (asked, published) = (Rc::clone(&keystore.asked), published(&bus));
    let acc = account("acc");
    let packs = keystore
        .beside(async {
            let loads = (0..20).map(|_| published.load(Some(&acc), &expected, soon()));
            let packs = futures_util::future::join_all(loads).await;
            let again = published.load(Some(&acc), &expected, Instant::now()).await;
            packs.into_iter().chain([again]).map(Result::unwrap).collect::<Vec<_>>()
        })
        .await;
    assert!(packs.iter().all(|pack| Arc::ptr_eq(pack, &packs[0]) && pack.version() == &expected));
    assert_eq!(asked.get(), 1);
    assert_eq!(LoadedPolicies::new(published.shared).versions(), [expected]);
}

#[tokio::test]
async fn a_pack_of_one_account_decides_nothing_of_another_and_equal_content_is_loaded_once() {
    let (bus, ours) = (Bus::new(), bundle("ours"));
    let expected = Pack::from_bundle(&ours).unwrap().version().clone();
    let of = |name: &str| (Some(account(name)), expected.clone(), ours.clone());
    let keystore = Keystore::new(&bus, vec![of("one"), of("two")]);
    let published = published(&bus);
    keystore
        .beside(async {
            let one = published.load(Some(&account("one")), &expected, soon()).await.unwrap();
            let two = published.load(Some(&account("two")), &expected, soon()).await.unwrap();
            assert!(Arc::ptr_eq(&one, &two));
            for stranger in [Some(account("three")), None] {
                let refused = published.load(stranger.as_ref(), &expected, soon()).await.unwrap_err();
                let told = format!("policy {expected} cannot be loaded: the keystore has no such policy");
                assert_eq!(refused.to_string(), told);
                let version = expected.clone();
                assert_eq!(refused.reply(), EvaluateReply::PolicyMissing { version, is_loading: false });
            }
        })
        .await;
}

#[tokio::test]
async fn what_loads_as_another_version_decides_nothing() {
    let (bus, ours) = (Bus::new(), bundle("ours"));
    let loads_as = Pack::from_bundle(&ours).unwrap().version().clone();
    let wrong = version("ours@1.0.0+000000000000");
    let keystore = Keystore::new(&bus, vec![(Some(account("acc")), wrong.clone(), ours)]);
    let published = published(&bus);
    let refused = keystore.beside(published.load(Some(&account("acc")), &wrong, soon())).await.unwrap_err();
    let told = format!(
        "policy {wrong} cannot be loaded: published as {wrong}, but loads as {loads_as} here: this release compiles in \
         another `baseline`"
    );
    assert_eq!(refused.to_string(), told);
    assert!(LoadedPolicies::new(published.shared).versions().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_version_that_cannot_be_loaded_is_asked_for_again_after_five_seconds() {
    let bus = Bus::new();
    let keystore = Keystore::new(&bus, Vec::new());
    let (asked, published, acc) = (Rc::clone(&keystore.asked), published(&bus), account("acc"));
    let missing = version("ours@1.0.0+000000000000");
    keystore
        .beside(async {
            for expected in [1, 1, 1] {
                assert!(published.load(Some(&acc), &missing, soon()).await.is_err());
                assert_eq!(asked.get(), expected);
            }
            tokio::time::advance(FAILED_TTL).await;
            assert!(published.load(Some(&acc), &missing, soon()).await.is_err());
            assert_eq!(asked.get(), 2);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_check_whose_time_is_over_is_told_that_its_policy_is_loading() {
    let bus = Bus::new();
    // It never answers.
    let _served = bus.connect().requests.serve::<FetchPolicy>().await.unwrap();
    let published = published(&bus);
    let wanted = version("ours@1.0.0+000000000000");
    let deadline = Instant::now() + Duration::from_secs(1);
    let policy = ActivePolicies { default: Some(wanted), environments: BTreeMap::new() };
    let rules = AccountRules { policy, ..AccountRules::default() };
    let request = CheckRequest::parse(json!({"goal": "two words"})).unwrap();
    let late = published.choose(&account("acc"), &rules, &request, deadline).await.unwrap_err();
    let version = version("ours@1.0.0+000000000000");
    assert_eq!(late.reply(), EvaluateReply::PolicyMissing { version, is_loading: true });
    assert!(late.to_string().ends_with("it is still being loaded: try again"), "{late}");
    assert!(Instant::now() < deadline, "while its gateway still waits");
}

#[tokio::test]
async fn the_environment_of_a_check_chooses_its_version_and_the_floor_is_the_deployments() {
    let (bus, acc) = (Bus::new(), account("acc"));
    let [usual, strict, floor] = ["usual", "strict", "floor"].map(bundle);
    let [of_usual, of_strict, of_floor] =
        [&usual, &strict, &floor].map(|bundle| Pack::from_bundle(bundle).unwrap().version().clone());
    let keystore = Keystore::new(
        &bus,
        vec![
            (Some(acc.clone()), of_usual.clone(), usual),
            (Some(acc.clone()), of_strict.clone(), strict),
            (None, of_floor.clone(), floor),
        ],
    );
    let published = published(&bus);
    let policy = ActivePolicies {
        default: Some(of_usual.clone()),
        environments: BTreeMap::from([("production".to_owned(), of_strict.clone())]),
    };
    let rules = AccountRules { policy, floor: Some(of_floor.clone()), ..AccountRules::default() };
    let request =
        |environment: &str| CheckRequest::parse(json!({"goal": "two words", "environment": environment})).unwrap();
    keystore
        .beside(async {
            for (environment, expected) in [("prod", &of_strict), ("staging", &of_usual)] {
                let chosen = published.choose(&acc, &rules, &request(environment), soon()).await.unwrap();
                assert_eq!(chosen.own.unwrap().version(), expected, "{environment}");
                assert_eq!(chosen.floor.unwrap().version(), &of_floor);
            }
            let none = published.choose(&acc, &AccountRules::default(), &request("prod"), soon()).await.unwrap();
            assert!(!none.is_published());
            // Of the account's own policies none is a floor.
            let own_floor = AccountRules { floor: Some(of_usual.clone()), ..AccountRules::default() };
            assert!(published.choose(&acc, &own_floor, &request("prod"), soon()).await.is_err());
        })
        .await;
}

/// A version of an account, and the content that it would have.
fn numbered(account: Option<&str>, number: usize) -> (Key, Content) {
    let account = account.map(|name| AccountId::parse(name).unwrap());
    let key = Key { account, version: version(&format!("p@1.0.{number}+000000000000")) };
    let content = Content::of(&key.version, &bundle("p")).unwrap();
    (key, content)
}

#[test]
fn the_pack_that_was_used_least_recently_leaves() {
    let pack = Pack::embedded().unwrap();
    let (mut kept, now) = (Kept::default(), Instant::now());
    let key = |number: usize| numbered(None, number).0;
    let content = |number: usize| numbered(None, number).1;
    for number in 0..BOUNDS.items {
        kept.loaded(&key(number), content(number), &pack, 1);
    }
    assert!(matches!(kept.find(&key(0), now), Some(Found::Loaded(_))), "used again");
    kept.loaded(&key(BOUNDS.items), content(BOUNDS.items), &pack, 1);
    assert!(kept.find(&key(1), now).is_none() && kept.known(&key(1), &content(1)).is_none());
    for stays in [0, 2, BOUNDS.items] {
        assert!(matches!(kept.find(&key(stays), now), Some(Found::Loaded(_))), "{stays}");
    }
}

#[test]
fn heavy_packs_of_accounts_take_only_their_own_places() {
    let pack = Pack::embedded().unwrap();
    let (mut kept, now) = (Kept::default(), Instant::now());
    let (quiet, quiet_content) = numbered(Some("quiet"), 0);
    kept.loaded(&quiet, quiet_content, &pack, 1_000);
    let heavy = stage0_contract::MAX_BUNDLE_BYTES;
    for number in 1..=21 {
        for account in ["a", "b", "c", "d", "e"] {
            let (key, _) = numbered(Some(account), number);
            // Two accounts have no content in common.
            let content = Content::of(&key.version, &bundle(account)).unwrap();
            kept.loaded(&key, content, &pack, heavy);
        }
    }
    assert!(matches!(kept.find(&quiet, now), Some(Found::Loaded(_))));
    let loaded = |kept: &mut Kept, account: &str| {
        let keys = (1..=21).map(|number| numbered(Some(account), number).0);
        keys.filter(|key| kept.find(key, now).is_some()).count()
    };
    let all: Vec<usize> = ["a", "b", "c", "d", "e"].iter().map(|account| loaded(&mut kept, account)).collect();
    let most = BOUNDS.share / (heavy + INHERITED_BYTES);
    assert!(all.iter().all(|count| (1..=most).contains(count)), "{all:?}, at most {most} each");
    assert!(all.iter().sum::<usize>() * (heavy + INHERITED_BYTES) <= BOUNDS.cost, "{all:?}");
}

#[test]
fn a_load_that_ended_without_an_outcome_is_begun_again() {
    let (mut kept, now) = (Kept::default(), Instant::now());
    let key = Key { account: None, version: version("p@1.0.0+000000000000") };
    let (done, waiting) = watch::channel(None);
    kept.loading(key.clone(), waiting);
    assert!(matches!(kept.find(&key, now), Some(Found::Loading(_))));
    drop(done);
    assert!(kept.find(&key, now).is_none());
}
