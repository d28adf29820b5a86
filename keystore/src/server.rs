//! The keystore's message endpoints: one serve loop for each request type.
//!
//! Each request runs on a task of its own, so a slow one delays no other. A management request is handled only after
//! [`callers`] has proven who makes it. When the keystore stops, requests that had arrived are still answered.
//! INVARIANT: no reply is sent once the lease has ended, because another keystore may have taken over.

use std::future::Future;
use std::sync::Arc;

use jiff::Timestamp;
use stage0_backplane::{Backplane, BoxFuture, IncomingRequest, ServeError};
use stage0_contract::{
    AcceptInvitation, CreateKey, DelegateMember, DisableWebhook, EnableWebhook, FetchPolicy, KeystoreStatus,
    ListActiveVersions, ListEndpoints, ListKeys, ListRetentions, ManageReply, NoteKeyUses, PermitDeletion, ReadPeople,
    RefreshKey, ReinviteMember, Request, ReturnCanary, RotateKey, RotateWebhookSecret, SignMark, SigningKeys,
    VerifyKey,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, AdminService, ChangeResult, ManageError, members, policies, stops, webhooks};
use crate::store::record_store::RecordStore;

pub(crate) mod admission;
pub(crate) mod callers;
pub(crate) mod handlers;
pub(crate) mod permits;
pub(crate) mod verify;

use callers::HasCaller;
use handlers::Handlers;

/// Requests of one type that are handled at a time; the backplane queues the rest.
const MAX_IN_FLIGHT: usize = 256;

pub(crate) async fn serve_all(
    backplane: &Backplane,
    handlers: &Arc<Handlers>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<(), ServeError> {
    // Every subject is joined before the first loop runs: a keystore that answers only some requests would look alive.
    let mut server = Server { backplane, handlers, stop, tasks, loops: Vec::new() };
    server.serve_keys().await?;
    server.serve_accounts().await?;
    server.serve_webhooks().await?;
    server.serve_people().await?;
    server.serve_policies().await?;
    server.serve_exporter().await?;
    for serve_loop in server.loops {
        tasks.spawn(serve_loop);
    }
    Ok(())
}

/// Subjects that are joined, and their loops, which do not run yet.
struct Server<'a> {
    backplane: &'a Backplane,
    handlers: &'a Arc<Handlers>,
    stop: &'a CancellationToken,
    tasks: &'a TaskTracker,
    loops: Vec<BoxFuture<'static, ()>>,
}

impl Server<'_> {
    async fn serve_keys(&mut self) -> Result<(), ServeError> {
        self.serve(|at, call: VerifyKey, _| async move { at.verifier.verify(call).await }).await?;
        self.serve(|at, call: RefreshKey, _| async move { at.verifier.refresh(call).await }).await?;
        self.serve(|at, call: NoteKeyUses, _| async move { at.note_key_uses(call).await }).await?;
        self.serve(|at, _: KeystoreStatus, _| async move { at.status() }).await?;
        self.manage(|at, call: CreateKey, deadline| async move { at.create_key(call, deadline).await }).await?;
        self.manage(|at, call: ListKeys, _| async move { at.list_keys(call).await }).await?;
        self.manage(|at, call: RotateKey, deadline| async move { at.rotate_key(call, deadline).await }).await?;
        self.change(AdminService::revoke_key).await
    }

    async fn serve_accounts(&mut self) -> Result<(), ServeError> {
        self.add(AdminService::create_account).await?;
        self.read(admin::list_accounts).await?;
        self.change(AdminService::update_account).await?;
        self.manage(|at, call: PermitDeletion, _| async move { at.permit_deletion(call).await }).await
    }

    async fn serve_webhooks(&mut self) -> Result<(), ServeError> {
        self.add(AdminService::create_webhook).await?;
        self.read(webhooks::list_webhooks).await?;
        self.read(webhooks::get_webhook).await?;
        self.add(AdminService::update_webhook).await?;
        self.add(|admin, call: EnableWebhook| admin.enable_webhook(&call)).await?;
        self.add(|admin, call: RotateWebhookSecret| admin.rotate_webhook_secret(&call)).await?;
        self.change(AdminService::delete_webhook).await
    }

    /// A code of an invitation proves its sender, and evaluators are known by their credentials, so neither names a
    /// caller.
    async fn serve_people(&mut self) -> Result<(), ServeError> {
        self.add(AdminService::invite_member).await?;
        self.add(|admin, call: ReinviteMember| admin.reinvite_member(&call)).await?;
        self.read(members::list_members).await?;
        self.add(AdminService::update_member).await?;
        self.add(|admin, call: DelegateMember| admin.delegate_member(&call)).await?;
        self.change(AdminService::remove_member).await?;
        self.serve_result(
            |at, call: AcceptInvitation, deadline| async move { at.accept_invitation(call, deadline).await },
        )
        .await?;
        self.serve_result(|at, call: ReadPeople, _| async move { at.read_people(call).await }).await?;
        self.change(AdminService::create_stop).await?;
        self.read(stops::list_stops).await?;
        self.change(AdminService::resume_stop).await
    }

    async fn serve_policies(&mut self) -> Result<(), ServeError> {
        self.add(AdminService::store_policy).await?;
        self.read(policies::list_policies).await?;
        self.read(policies::show_policy).await?;
        self.read(policies::read_active_policies).await?;
        self.read(policies::read_policy_history).await?;
        self.change(AdminService::activate_policy).await?;
        self.change(AdminService::roll_back_policy).await?;
        self.change(AdminService::forget_policy).await?;
        self.change(AdminService::shadow_policy).await?;
        self.change(AdminService::withdraw_candidate).await?;
        // Its own terms end a canary, so the call names no caller.
        self.serve_result(|at, call: ReturnCanary, deadline| async move {
            at.change(deadline, move |admin| admin.return_canary(&call)).await
        })
        .await?;
        self.read(policies::list_proposals).await?;
        self.read(policies::show_proposal).await?;
        self.change(AdminService::decide_proposal).await?;
        self.serve_result(|at, call: ListActiveVersions, _| async move {
            at.read(move |store, _| policies::list_active_versions(store, &call)).await
        })
        .await?;
        self.serve_result(|at, call: FetchPolicy, _| async move {
            at.read(move |store, _| policies::fetch_policy(store, &call)).await
        })
        .await
    }

    /// Requests of exporters carry no caller: the backplane's credentials decide who may send them.
    async fn serve_exporter(&mut self) -> Result<(), ServeError> {
        self.serve_result(|at, call: ListEndpoints, _| async move { at.list_endpoints(call).await }).await?;
        self.serve_result(|at, call: DisableWebhook, deadline| async move {
            at.change(deadline, move |admin| admin.disable_webhook(&call)).await
        })
        .await?;
        self.serve_result(|at, call: ListRetentions, _| async move {
            at.read(move |store, _| admin::list_retentions(store, &call)).await
        })
        .await?;
        self.serve(|at, call: SignMark, deadline| async move { at.sign_mark(call, deadline).await }).await?;
        self.serve_result(|at, call: SigningKeys, _| async move { at.signing_keys(call).await }).await
    }

    async fn add<R, T>(&mut self, change: fn(&mut AdminService, R) -> ChangeResult<T>) -> Result<(), ServeError>
    where
        R: Request<Reply = ManageReply<T>> + HasCaller,
        T: Send + Sync + 'static,
    {
        self.manage(move |at, mut call: R, deadline| async move {
            let account = call.caller_mut().account.clone();
            at.add(&account, deadline, move |admin| change(admin, call)).await
        })
        .await
    }

    async fn change<R, T>(&mut self, change: fn(&mut AdminService, &R) -> ChangeResult<T>) -> Result<(), ServeError>
    where
        R: Request<Reply = ManageReply<T>> + HasCaller,
        T: Send + Sync + 'static,
    {
        self.manage(
            move |at, call: R, deadline| async move { at.change(deadline, move |admin| change(admin, &call)).await },
        )
        .await
    }

    async fn read<R, T>(
        &mut self,
        read: fn(&RecordStore, &R, Timestamp) -> Result<T, ManageError>,
    ) -> Result<(), ServeError>
    where
        R: Request<Reply = ManageReply<T>> + HasCaller,
        T: Send + Sync + 'static,
    {
        self.manage(move |at, call: R, _| async move { at.read(move |store, now| read(store, &call, now)).await }).await
    }

    async fn manage<R, T, Handled>(
        &mut self,
        handler: impl Fn(Arc<Handlers>, R, Instant) -> Handled + Copy + Send + Sync + 'static,
    ) -> Result<(), ServeError>
    where
        R: Request<Reply = ManageReply<T>> + HasCaller,
        T: Send + Sync + 'static,
        Handled: Future<Output = Result<T, ManageError>> + Send + 'static,
    {
        self.serve_result(move |handlers: Arc<Handlers>, mut call: R, deadline| async move {
            handlers.callers.prove(&mut call, deadline).await?;
            handler(handlers, call, deadline).await
        })
        .await
    }

    async fn serve_result<R, T, Handled>(
        &mut self,
        handler: impl Fn(Arc<Handlers>, R, Instant) -> Handled + Copy + Send + Sync + 'static,
    ) -> Result<(), ServeError>
    where
        R: Request<Reply = ManageReply<T>>,
        T: Send + Sync + 'static,
        Handled: Future<Output = Result<T, ManageError>> + Send + 'static,
    {
        self.serve(move |handlers, call: R, deadline| async move {
            admin::reply(R::SUBJECT, handler(handlers, call, deadline).await)
        })
        .await
    }

    async fn serve<R, Handled>(
        &mut self,
        handler: impl Fn(Arc<Handlers>, R, Instant) -> Handled + Copy + Send + Sync + 'static,
    ) -> Result<(), ServeError>
    where
        R: Request,
        Handled: Future<Output = R::Reply> + Send + 'static,
    {
        let requests = self.backplane.requests.serve::<R>().await?;
        let (handlers, stop, tasks) = (Arc::clone(self.handlers), self.stop.clone(), self.tasks.clone());
        self.loops.push(Box::pin(async move {
            let spawn = |incoming| {
                let handled = tasks.spawn(answer(Arc::clone(&handlers), incoming, handler));
                // After a panic, which the panic hook reports, the caller's request times out.
                async move { drop(handled.await) }
            };
            requests.run(&stop, MAX_IN_FLIGHT, spawn).await;
        }));
        Ok(())
    }
}

async fn answer<R, Handled>(
    handlers: Arc<Handlers>,
    incoming: IncomingRequest<R>,
    handler: impl Fn(Arc<Handlers>, R, Instant) -> Handled,
) where
    R: Request,
    Handled: Future<Output = R::Reply>,
{
    let tenure = handlers.tenure.clone();
    let (request, deadline, responder) = incoming.into_parts();
    let reply = handler(handlers, request, deadline).await;
    // Checked after the reply is computed: this process may have been frozen in between.
    if tenure.is_valid() {
        responder.answer(&reply).await;
    } else {
        tracing::warn!(subject = R::SUBJECT, "request is not answered: the lease is over");
    }
}
