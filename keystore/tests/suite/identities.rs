//! What an identity tells of its key beyond its rights: the key's name, and the groups of the member behind it.

use stage0_contract::{CreateKey, KeyChanged, RefreshKey, RefreshKeyReply, RemoveMember, Scope, UpdateMember};

use crate::harness::{Running, done, next_key_notice};

/// The groups in the identity of a key.
async fn groups(running: &Running, key: &stage0_contract::ApiKey) -> Vec<String> {
    running.verify(key).await.unwrap().groups.expect("this keystore tells")
}

#[tokio::test]
async fn an_identity_has_the_name_of_its_key_and_the_groups_of_its_member_or_else_of_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let (owner, by) = running.member(&account, &[Scope::KeysManage, Scope::Check]).await;
    let of_owner = CreateKey {
        caller: by.clone(),
        account: None,
        name: "refunds-bot".to_owned(),
        owner: Some(owner.clone()),
        ..running.create(&account, &[Scope::Check])
    };
    let owned = done(running.ask(&of_owner).await);
    let alone = running.key(&account, &[Scope::Check]).await;
    let own = by.key.clone().unwrap();
    let managers = ["release-managers".to_owned()];
    assert_eq!(
        (groups(&running, &owned.key).await, groups(&running, &own).await),
        (managers.to_vec(), managers.into())
    );
    assert_eq!(groups(&running, &alone.key).await, Vec::<String>::new(), "there is no member behind it");
    assert_eq!(running.verify(&owned.key).await.unwrap().key_name.as_deref(), Some("refunds-bot"));

    // Changed groups are in every identity from the notice on.
    let mut notices = running.backplane.notices.subscribe::<KeyChanged>().await.unwrap();
    let finance = vec!["finance".to_owned(), "support".to_owned()];
    let update = UpdateMember {
        caller: running.operator.clone(),
        id: owner.clone(),
        name: None,
        mail: None,
        groups: Some(finance.clone()),
    };
    done(running.ask(&update).await);
    assert_eq!(next_key_notice(&mut notices).await.0, account);
    assert_eq!((groups(&running, &owned.key).await, groups(&running, &own).await), (finance.clone(), finance.clone()));
    let refreshed = running.ask(&RefreshKey { key_id: owned.id.clone(), request_id: None }).await;
    assert!(matches!(refreshed, RefreshKeyReply::Live(identity) if identity.groups == Some(finance)));
    let rotated = running.rotate(&owned.id, 60).await;
    assert_eq!(running.verify(&rotated.key).await.unwrap().key_name.as_deref(), Some("refunds-bot"), "as before");

    // A workload outlives its owner, without the owner's groups.
    done(running.ask(&RemoveMember { caller: running.operator.clone(), id: owner }).await);
    assert_eq!(next_key_notice(&mut notices).await.0, account);
    assert_eq!(groups(&running, &rotated.key).await, Vec::<String>::new());
    running.stop().await;
}
