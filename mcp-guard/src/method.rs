//! What is done with each method. A method that is not in this table does not reach the server.

/// What a client's request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// Is decided before it passes.
    CallTool,
    /// Reads something of the server: decided as a read. Names the member of `params` that says what.
    Read(&'static str),
    /// Its answer is filtered, and its definitions are pinned.
    ListTools,
    /// Its answer says which version the session speaks.
    Initialize,
    /// Has no effect outside of the session.
    Pass,
}

/// What a client's request is, by its method. `None`: the method is unknown.
pub(crate) fn of_request(method: &str) -> Option<Method> {
    Some(match method {
        "tools/call" => Method::CallTool,
        "resources/read" | "resources/subscribe" => Method::Read("uri"),
        "prompts/get" => Method::Read("name"),
        "tools/list" => Method::ListTools,
        "initialize" => Method::Initialize,
        "ping"
        | "server/discover"
        | "prompts/list"
        | "resources/list"
        | "resources/templates/list"
        | "resources/unsubscribe"
        | "completion/complete"
        | "logging/setLevel"
        | "subscriptions/listen"
        // Of calls that were decided when they began.
        | "tasks/get"
        | "tasks/result"
        | "tasks/list"
        | "tasks/update"
        | "tasks/cancel" => Method::Pass,
        _ => return None,
    })
}

/// The notification with which a client cancels a request.
pub(crate) const CANCELLED: &str = "notifications/cancelled";

/// Whether a client's notification is passed on.
pub(crate) fn is_known_notification(method: &str) -> bool {
    matches!(
        method,
        CANCELLED | "notifications/initialized" | "notifications/progress" | "notifications/roots/list_changed"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_methods_of_the_table_are_known() {
        assert_eq!(of_request("tools/call"), Some(Method::CallTool));
        assert_eq!(of_request("ping"), Some(Method::Pass));
        for method in ["", "tools/Call", "tools/call ", "tools/execute", "sampling/createMessage", "notifications/x"] {
            assert_eq!(of_request(method), None, "{method}");
        }
        assert!(is_known_notification("notifications/initialized"));
        assert!(!is_known_notification("notifications/tools/list_changed"), "that is the server's");
    }
}
