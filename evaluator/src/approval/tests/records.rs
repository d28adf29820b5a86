//! The record: its id, its text, and the events that it takes over.

use super::*;

#[test]
fn an_id_leads_to_its_slot_and_a_moved_record_does_not_belong() {
    let approval = approval_of(terms(&[(&["rm"], 1)]));
    assert_eq!(slot_in(&approval.id), Some(slot_of(&digest())));
    let account = AccountId::parse("acc").unwrap();
    assert!(approval.belongs(&account, slot_of(&digest())));
    assert!(!approval.belongs(&AccountId::parse("other").unwrap(), slot_of(&digest())));
    assert!(!approval.belongs(&account, &"cd".repeat(16)));
    let altered = StoredApproval { action_digest: ActionDigest::parse(&"cd".repeat(32)).unwrap(), ..approval };
    assert!(!altered.belongs(&account, slot_of(&digest())));
    for bad in ["apr_1", "apr_zz_00000000", &format!("apr_{}_0000000g", "ab".repeat(16))] {
        assert_eq!(slot_in(&stage0_contract::ApprovalId::parse(bad).unwrap()), None, "{bad}");
    }
}

#[test]
fn a_record_is_read_as_it_was_written_and_events_have_ids_of_their_own() {
    let mut used = approved();
    claim(&mut used, 2, 2, 1);
    let text = serde_json::to_string(&used).unwrap();
    assert_eq!(serde_json::from_str::<StoredApproval>(&text).unwrap(), used);
    let mut ids: Vec<_> = used.outbox.events.iter().map(|stored| stored.event.event_id).collect();
    assert!(ids.iter().all(|id| id.get_version_num() == 7));
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

#[test]
fn what_happens_to_an_ended_approval_is_taken_over_once() {
    let mut ended = approved();
    claim(&mut ended, 2, 2, 1);
    let mut heir = approval_of(terms(&[(&["rm"], 1)]));
    heir.outbox = Outbox::default();
    assert!(heir.outbox.adopt(&ended.outbox) && !heir.outbox.adopt(&ended.outbox));
    assert!(!kinds(&heir).contains(&LineType::ApprovalUsed), "only with its decision");
    assert_eq!(heir.outbox.events.len() + 1, ended.outbox.events.len());
}

#[test]
fn an_approval_that_a_floor_had_a_part_in_names_it_and_so_do_its_events() {
    let floor = PolicyVersion::parse("house@1.0.0+000000000002").unwrap();
    let of_both = StoredApproval { floor_version: Some(floor.clone()), ..approval_of(terms(&[(&["rm"], 1)])) };
    let event = of_both.event(LineType::ApprovalCancelled, at(5));
    assert_eq!((of_both.view(None, None).floor_version, event.floor_version), (Some(floor.clone()), Some(floor)));
    // Without a floor the record is written as before there were any.
    let of_one = approval_of(terms(&[(&["rm"], 1)]));
    assert!(!serde_json::to_string(&of_one).unwrap().contains("floor"));
    assert_eq!(of_one.view(None, None).floor_version, None);
}
