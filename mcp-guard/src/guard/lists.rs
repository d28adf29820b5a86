//! `tools/list`: definitions are compared with their pins, and tools that the policy can never allow are left out.
//!
//! A list lets nothing run: every call is decided again. It is filtered so that a model does not read, and does not
//! try, what is of no use to it.

use std::sync::atomic::Ordering;

use super::{Answered, Guard};
use crate::answer;
use crate::ask::MayEver;
use crate::message::{NOT_ALLOWED, Response};
use crate::pins::{Compared, MAX_TOOLS};
use crate::tools::Page;
use crate::version::Version;

impl Guard {
    pub(super) async fn listed(&self, version: Version, response: &Response<'_>) -> Answered {
        let Some(result) = response.result else { return Answered::AsItCame };
        match self.page(result).await {
            Ok(page) => {
                let shown = page.visible(version);
                Answered::Replaced(response.envelope.clone().with("result", &shown).to_text().into_bytes())
            }
            Err(text) => {
                tracing::warn!(server = self.server, "a list of tools is not passed on: {text}");
                Answered::Replaced(answer::error(response.envelope.get("id"), NOT_ALLOWED, &text))
            }
        }
    }

    async fn page<'a>(&self, result: &'a str) -> Result<Page<'a>, String> {
        let mut page = Page::read(result).map_err(|error| error.to_string())?;
        if page.left_out > 0 {
            tracing::warn!(server = self.server, left_out = page.left_out, "definitions of tools that cannot be read");
        }
        self.compare(&mut page)?;
        self.filter(&mut page).await?;
        let mut tools = self.tools();
        for (name, _, tool) in &page.tools {
            if tools.len() >= MAX_TOOLS && !tools.contains_key(name) {
                return Err(format!("the server lists more than {MAX_TOOLS} tools"));
            }
            tools.insert(name.clone(), tool.clone());
        }
        Ok(page)
    }

    fn compare(&self, page: &mut Page<'_>) -> Result<(), String> {
        let seen: Vec<(&str, &str)> =
            page.tools.iter().map(|(name, _, tool)| (name.as_str(), tool.sha256.as_str())).collect();
        let compared = self.pins.compare(&self.server, &seen).map_err(|error| {
            tracing::error!("{}", chain(&error));
            format!("the definitions of the tools cannot be compared with their pins: {error}")
        })?;
        let mut pinned = Vec::new();
        for ((name, _, tool), compared) in page.tools.iter_mut().zip(compared) {
            match compared {
                Compared::Same => {}
                Compared::Pinned => pinned.push(name.as_str()),
                Compared::Changed => {
                    tool.is_changed = true;
                    tracing::warn!(
                        server = self.server,
                        tool = name,
                        "the definition of a tool has changed: it is held back until `stage0 guard mcp pins accept`"
                    );
                }
            }
        }
        if !pinned.is_empty() {
            let tools = pinned.join(", ");
            tracing::info!(
                server = self.server,
                "definitions are trusted from now on, as they are seen first: {tools}"
            );
        }
        Ok(())
    }

    async fn filter(&self, page: &mut Page<'_>) -> Result<(), String> {
        if self.is_unfiltered() {
            return Ok(());
        }
        let names: Vec<&str> = page.tools.iter().map(|(name, _, _)| name.as_str()).collect();
        match self.asker.may_ever(&self.server, &names).await {
            Ok(MayEver::Known(hidden)) => {
                for ((_, _, tool), is_hidden) in page.tools.iter_mut().zip(hidden) {
                    tool.is_hidden = is_hidden;
                }
                Ok(())
            }
            Ok(MayEver::NotAsked) => {
                if !self.lists_unfiltered.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "the Stage0 server has no probes: lists pass unfiltered, every call is still decided"
                    );
                }
                Ok(())
            }
            Err(why) => Err(format!("the list of tools is not decided: {why}")),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}
