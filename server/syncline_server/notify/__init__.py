"""Wake-ups from commits to subscriptions."""
