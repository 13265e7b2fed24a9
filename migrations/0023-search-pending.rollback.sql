ALTER INDEX IF EXISTS ix_tickets_search RESET (gin_pending_list_limit);

ALTER INDEX IF EXISTS ix_tickets_search_internal RESET (gin_pending_list_limit);

ALTER INDEX IF EXISTS ix_tickets_search_all RESET (gin_pending_list_limit);
