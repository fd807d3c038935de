//! What PostgreSQL's own functions do, and the words before a parenthesis that are no function at all.
//!
//! Sources: `pg_proc` of PostgreSQL 15 (immutable and stable functions that a statement can call, less those that
//! only implement operators, types and aggregates), the documentation of PostgreSQL 16 to 18 for later ones, and
//! `pg_get_keywords()` for the keywords that cannot be function names. Volatile functions were sorted by hand:
//! a read assigns no transaction id and writes no WAL. `provolatile` alone does not tell: `txid_current()` is
//! "stable". A built-in that is not listed is reported like any unknown function, which costs a lookup.

/// What a call of a built-in means to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Builtin {
    /// A keyword.
    Syntax,
    /// Writes nothing.
    Reads,
    /// Writes nothing, but makes sense on the primary only.
    ReadsPrimary,
    /// Writes nothing, and tells of the server that runs it: the primary, if it answers.
    Tells,
    /// Assigns a transaction id or writes WAL; or runs a statement that it is given as text.
    Writes,
    /// `set_config`.
    SetConfig,
    /// Takes an advisory lock that the session keeps.
    SessionLock,
    /// `pg_advisory_unlock_all`.
    UnlockAll,
}

/// Reserved words and column-name words, which cannot be called; and a few words that always are syntax when
/// a parenthesis follows.
const SYNTAX: &str = "\
    all analyse analyze and any array as asc asymmetric between bigint bit boolean both by case cast \
    char character check coalesce collate column constraint create current_catalog current_date \
    current_role current_time current_timestamp current_user dec decimal default deferrable desc \
    distinct do else end except exists extract false fetch float for foreign from grant greatest group \
    grouping having ilike in initially inout int integer intersect interval into join lateral leading \
    least limit localtime localtimestamp materialized national nchar none normalize not null nullif \
    numeric offset on only operator or order out overlay placing position precision primary real references \
    returning row select session_user setof sets smallint some substring symmetric table then time \
    timestamp to trailing treat trim true union unique user using values varchar variadic varying when \
    where window with xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces xmlparse \
    xmlpi xmlroot xmlserialize xmltable";

/// Immutable and stable functions, and volatile ones that write nothing: clocks, random numbers, sleeping, reading of
/// large objects; and what only standbys can tell of their replay, or stop.
const READS: &str = "\
    abbrev abs aclcontains acldefault aclexplode acos acosd acosh age any_value area array_agg \
    array_append array_dims array_fill array_length array_lower array_ndims array_position \
    array_positions array_prepend array_remove array_replace array_reverse array_sample array_shuffle \
    array_sort array_to_json array_to_string array_to_tsvector array_upper ascii asin asind asinh atan \
    atan2 atan2d atand atanh avg bernoulli bit_and bit_count bit_length bit_or bit_xor bool bool_and \
    bool_or box bpchar bytea cardinality casefold cash_words cbrt ceil ceiling center char_length \
    character_length chr cidr circle clock_timestamp col_description concat concat_ws convert \
    convert_from convert_to corr cos cosd cosh cot cotd count covar_pop covar_samp crc32c cume_dist \
    current_database current_query current_schema current_schemas current_setting database_to_xmlschema \
    date date_add date_bin date_part date_subtract date_trunc datemultirange daterange decode degrees \
    dense_rank diagonal diameter div encode enum_first enum_last enum_range erf erfc every exp factorial \
    family first_value float4 float8 floor format format_type gamma gcd gen_random_uuid generate_series \
    generate_subscripts get_bit get_byte get_current_ts_config getdatabaseencoding getpgusername \
    has_any_column_privilege has_column_privilege has_database_privilege \
    has_foreign_data_wrapper_privilege has_function_privilege has_language_privilege \
    has_largeobject_privilege has_parameter_privilege has_schema_privilege has_sequence_privilege \
    has_server_privilege has_table_privilege has_tablespace_privilege has_type_privilege height host \
    hostmask icu_unicode_version inet inet_client_addr inet_client_port inet_server_addr \
    inet_server_port initcap int2 int2vector int4 int4multirange int4range int8 int8multirange int8range \
    is_normalized isclosed isempty isfinite ishorizontal isopen isparallel isperp isvertical json \
    json_agg json_agg_strict json_array json_array_elements json_array_elements_text json_array_length \
    json_arrayagg json_build_array json_build_object json_each json_each_text json_exists \
    json_extract_path json_extract_path_text json_object json_object_agg json_object_agg_strict \
    json_object_agg_unique json_object_agg_unique_strict json_object_keys json_objectagg \
    json_populate_record json_populate_recordset json_query json_scalar json_serialize json_strip_nulls \
    json_table json_to_record json_to_recordset json_to_tsvector json_typeof json_value jsonb jsonb_agg \
    jsonb_agg_strict jsonb_array_elements jsonb_array_elements_text jsonb_array_length jsonb_build_array \
    jsonb_build_object jsonb_each jsonb_each_text jsonb_extract_path jsonb_extract_path_text \
    jsonb_insert jsonb_object jsonb_object_agg jsonb_object_agg_strict jsonb_object_agg_unique \
    jsonb_object_agg_unique_strict jsonb_object_keys jsonb_path_exists jsonb_path_exists_tz \
    jsonb_path_match jsonb_path_match_tz jsonb_path_query jsonb_path_query_array \
    jsonb_path_query_array_tz jsonb_path_query_first jsonb_path_query_first_tz jsonb_path_query_tz \
    jsonb_populate_record jsonb_populate_recordset jsonb_pretty jsonb_set jsonb_set_lax \
    jsonb_strip_nulls jsonb_to_record jsonb_to_recordset jsonb_to_tsvector jsonb_typeof jsonpath \
    justify_days justify_hours justify_interval lag last_value lcm lead left length lgamma like line ln \
    lo_close lo_get lo_lseek lo_lseek64 lo_open lo_tell lo_tell64 log log10 loread lower lower_inc \
    lower_inf lpad lseg ltrim macaddr macaddr8 macaddr8_set7bit make_date make_interval make_time \
    make_timestamp make_timestamptz makeaclitem masklen max md5 merge_action min min_scale mod mode \
    money multirange mxid_age name netmask network now npoints nth_value ntile num_nonnulls num_nulls \
    numeric_div_trunc nummultirange numnode numrange obj_description octet_length oid oidvector \
    oidvectortypes overlaps parse_ident path percent_rank percentile_cont percentile_disc \
    pg_available_extension_versions pg_available_extensions pg_backend_pid pg_basetype pg_char_to_encoding \
    pg_client_encoding pg_collation_actual_version pg_collation_for pg_collation_is_visible \
    pg_column_compression pg_column_is_updatable pg_column_size pg_column_toast_chunk_id pg_config \
    pg_control_init pg_control_system pg_conversion_is_visible pg_current_snapshot \
    pg_current_xact_id_if_assigned pg_cursor pg_database_collation_actual_version pg_database_size \
    pg_describe_object pg_encoding_max_length pg_encoding_to_char pg_extension_update_paths \
    pg_filenode_relation pg_function_is_visible pg_get_acl pg_get_backend_memory_contexts \
    pg_get_constraintdef pg_get_expr pg_get_function_arg_default pg_get_function_arguments \
    pg_get_function_identity_arguments pg_get_function_result pg_get_function_sqlbody pg_get_functiondef \
    pg_get_indexdef pg_get_keywords pg_get_multixact_members pg_get_object_address \
    pg_get_partition_constraintdef pg_get_partkeydef pg_get_publication_tables \
    pg_get_replica_identity_index pg_get_ruledef pg_get_serial_sequence pg_get_statisticsobjdef \
    pg_get_statisticsobjdef_columns pg_get_statisticsobjdef_expressions pg_get_triggerdef \
    pg_get_userbyid pg_get_viewdef pg_get_wal_replay_pause_state pg_has_role pg_identify_object \
    pg_identify_object_as_address pg_index_column_has_property pg_index_has_property \
    pg_indexam_has_property pg_indexam_progress_phasename pg_indexes_size pg_input_error_info \
    pg_input_is_valid pg_is_in_recovery pg_is_other_temp_schema pg_is_wal_replay_paused pg_jit_available \
    pg_last_committed_xact pg_last_wal_receive_lsn pg_last_wal_replay_lsn pg_last_xact_replay_timestamp \
    pg_listening_channels pg_lsn pg_mcv_list_items pg_my_temp_schema pg_opclass_is_visible \
    pg_operator_is_visible pg_opfamily_is_visible pg_options_to_table pg_partition_ancestors \
    pg_partition_root pg_partition_tree pg_prepared_statement pg_relation_filenode pg_relation_filepath \
    pg_relation_is_publishable pg_relation_is_updatable pg_relation_size pg_replication_origin_oid \
    pg_sequence_last_value pg_sequence_parameters pg_settings_get_flags pg_show_all_settings \
    pg_size_bytes pg_size_pretty pg_sleep pg_sleep_for pg_sleep_until pg_snapshot_xip pg_snapshot_xmax \
    pg_snapshot_xmin pg_stat_clear_snapshot pg_stat_force_next_flush pg_statistics_obj_is_visible \
    pg_table_is_visible pg_table_size pg_tablespace_databases pg_tablespace_location pg_tablespace_size \
    pg_timezone_abbrevs pg_timezone_names pg_total_relation_size pg_trigger_depth \
    pg_ts_config_is_visible pg_ts_dict_is_visible pg_ts_parser_is_visible pg_ts_template_is_visible \
    pg_type_is_visible pg_typeof pg_visible_in_snapshot pg_wal_lsn_diff pg_wal_replay_pause \
    pg_wal_replay_resume pg_xact_commit_timestamp pg_xact_commit_timestamp_origin phraseto_tsquery pi \
    plainto_tsquery point polygon pow power querytree quote_ident quote_literal quote_nullable radians \
    radius random random_normal range_agg range_contains range_intersect_agg range_merge rank regclass \
    regexp_count regexp_instr regexp_like regexp_match regexp_matches regexp_replace \
    regexp_split_to_array regexp_split_to_table regexp_substr regnamespace regoper regoperator regproc \
    regprocedure regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy \
    regr_syy regrole regtype repeat replace reverse right round row_number row_security_active \
    row_to_json rpad rtrim scale schema_to_xmlschema set_bit set_byte set_masklen setseed setweight \
    sha224 sha256 sha384 shobj_description sign sin sind sinh slope split_part sqrt statement_timestamp \
    stddev stddev_pop stddev_samp string_agg string_to_array string_to_table strip strpos substr sum \
    system system_user table_to_xmlschema tan tand tanh text timeofday timestamptz timetz timezone \
    to_ascii to_bin to_char to_date to_hex to_json to_jsonb to_number to_oct to_regclass to_regcollation \
    to_regnamespace to_regoper to_regoperator to_regproc to_regprocedure to_regrole to_regtype \
    to_regtypemod to_timestamp to_tsquery to_tsvector transaction_timestamp translate trim_array \
    trim_scale trunc ts_debug ts_delete ts_filter ts_headline ts_lexize ts_parse ts_rank ts_rank_cd \
    ts_token_type tsmultirange tsquery tsquery_phrase tsrange tstzmultirange tstzrange tsvector \
    tsvector_to_array txid_current_if_assigned txid_current_snapshot txid_snapshot_xip \
    txid_snapshot_xmax txid_snapshot_xmin txid_visible_in_snapshot unicode_assigned unicode_version \
    unistr unnest upper upper_inc upper_inf uuid uuid_extract_timestamp uuid_extract_version uuidv4 \
    uuidv7 var_pop var_samp varbit variance version websearch_to_tsquery width width_bucket xid xml \
    xml_is_well_formed xml_is_well_formed_content xml_is_well_formed_document xmlagg xmlcomment xmltext \
    xmlvalidate xpath xpath_exists";

/// Advisory locks (a standby's are not the primary's), session sequences, positions in the WAL (standbys refuse),
/// notifications (standbys refuse), signals to processes, files that are written, what became of a transaction (a
/// standby may not have its end yet).
const READS_PRIMARY: &str = "\
    currval lastval lo_export pg_advisory_unlock pg_advisory_unlock_shared pg_advisory_xact_lock \
    pg_advisory_xact_lock_shared pg_cancel_backend pg_current_wal_flush_lsn pg_current_wal_insert_lsn \
    pg_current_wal_lsn pg_export_snapshot pg_log_backend_memory_contexts pg_notify pg_reload_conf \
    pg_rotate_logfile pg_terminate_backend pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared \
    pg_walfile_name pg_walfile_name_offset pg_xact_status txid_status";

/// What a server says of itself: its processes, locks, prepared transactions, statistics, files. Not its role, nor the process
/// that answers: who asks for these wants to know where reads go.
const TELLS: &str = "\
    pg_blocking_pids pg_conf_load_time pg_control_checkpoint pg_control_recovery \
    pg_current_logfile pg_get_replication_slots pg_get_shmem_allocations pg_hba_file_rules \
    pg_ident_file_mappings pg_isolation_test_session_is_blocked pg_lock_status \
    pg_ls_archive_statusdir pg_ls_dir pg_ls_logdir pg_ls_tmpdir pg_ls_waldir pg_notification_queue_usage \
    pg_postmaster_start_time pg_prepared_xact pg_read_binary_file pg_read_file \
    pg_safe_snapshot_blocking_pids pg_show_all_file_settings pg_show_replication_origin_status \
    pg_stat_file pg_stat_have_stats";

/// Sequences, transaction ids, WAL, large objects, replication slots, index maintenance, statistics; the XML exports
/// and `ts_stat` run a statement that they are given as text.
const WRITES: &str = "\
    brin_desummarize_range brin_summarize_new_values brin_summarize_range cursor_to_xml database_to_xml \
    database_to_xml_and_xmlschema gin_clean_pending_list lo_creat lo_create lo_from_bytea lo_import \
    lo_put lo_truncate lo_truncate64 lo_unlink lowrite nextval pg_backup_start pg_backup_stop \
    pg_clear_attribute_stats pg_clear_relation_stats pg_copy_logical_replication_slot \
    pg_copy_physical_replication_slot pg_create_logical_replication_slot \
    pg_create_physical_replication_slot pg_create_restore_point pg_current_xact_id \
    pg_drop_replication_slot pg_import_system_collations pg_log_standby_snapshot pg_logical_emit_message \
    pg_logical_slot_get_binary_changes pg_logical_slot_get_changes pg_promote \
    pg_replication_origin_advance pg_replication_origin_create pg_replication_origin_drop \
    pg_replication_slot_advance pg_restore_attribute_stats pg_restore_relation_stats pg_start_backup \
    pg_stop_backup pg_switch_wal pg_sync_replication_slots query_to_xml query_to_xml_and_xmlschema \
    schema_to_xml schema_to_xml_and_xmlschema setval table_to_xml table_to_xml_and_xmlschema ts_rewrite \
    ts_stat txid_current";

/// The transaction's variants (`..._xact_lock`) are given back by COMMIT.
const SESSION_LOCKS: &str = "\
    pg_advisory_lock pg_advisory_lock_shared pg_try_advisory_lock pg_try_advisory_lock_shared";

/// A power of two, about twice the number of names.
const SLOTS: usize = 2048;

/// Longest name.
const NAME_MAX: usize = 63;

/// An open-addressing hash table, made by the compiler.
static TABLE: [Option<(&[u8], Builtin)>; SLOTS] = {
    let mut table = [None; SLOTS];
    insert(&mut table, SYNTAX.as_bytes(), Builtin::Syntax);
    insert(&mut table, READS.as_bytes(), Builtin::Reads);
    insert(&mut table, READS_PRIMARY.as_bytes(), Builtin::ReadsPrimary);
    insert(&mut table, TELLS.as_bytes(), Builtin::Tells);
    insert(&mut table, WRITES.as_bytes(), Builtin::Writes);
    insert(&mut table, SESSION_LOCKS.as_bytes(), Builtin::SessionLock);
    insert(&mut table, b"set_config", Builtin::SetConfig);
    insert(&mut table, b"pg_advisory_unlock_all", Builtin::UnlockAll);
    table
};

/// FNV-1a over the lower-case name.
const fn slot(name: &[u8]) -> usize {
    let mut hash = 0x811c_9dc5_u32;
    let mut at = 0;
    while at < name.len() {
        hash = (hash ^ name[at].to_ascii_lowercase() as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    (hash ^ (hash >> 15)) as usize % SLOTS
}

/// Puts the names of a list, separated by spaces, into free slots.
const fn insert(table: &mut [Option<(&'static [u8], Builtin)>; SLOTS], names: &'static [u8], kind: Builtin) {
    let mut rest = names;
    while !rest.is_empty() {
        let mut length = 0;
        while length < rest.len() && rest[length] != b' ' {
            length += 1;
        }
        let (name, tail) = rest.split_at(length);
        let mut at = slot(name);
        while table[at].is_some() {
            at = (at + 1) % SLOTS;
        }
        table[at] = Some((name, kind));
        rest = if tail.is_empty() { tail } else { tail.split_at(1).1 };
    }
}

/// Finds a name, in any case.
pub(super) fn lookup(name: &[u8]) -> Option<Builtin> {
    if name.len() > NAME_MAX {
        return None;
    }
    let mut at = slot(name);
    while let Some((known, kind)) = TABLE[at] {
        if known.eq_ignore_ascii_case(name) {
            return Some(kind);
        }
        at = (at + 1) % SLOTS;
    }
    // Accessors of the statistics views: too many to list, and each release adds some.
    if starts_with(name, b"pg_stat_get_") {
        Some(Builtin::Tells)
    } else {
        starts_with(name, b"pg_stat_reset").then_some(Builtin::ReadsPrimary)
    }
}

/// Views on what a server says of itself; see [`TELLS`].
const TELLING_VIEWS: [&[u8]; 4] =
    [b"pg_locks", b"pg_prepared_xacts", b"pg_replication_slots", b"pg_file_settings"];

/// Whether a relation of this name, in any case, tells of the server that is asked.
pub(super) fn tells(name: &[u8]) -> bool {
    starts_with(name, b"pg_")
        && (starts_with(name, b"pg_stat_")
            || starts_with(name, b"pg_statio_")
            || TELLING_VIEWS.iter().any(|view| name.eq_ignore_ascii_case(view)))
}

fn starts_with(name: &[u8], start: &[u8]) -> bool {
    name.get(..start.len()).is_some_and(|found| found.eq_ignore_ascii_case(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_is_found_as_what_it_was_listed() {
        // A name in two lists would be found as the first; a full table would never end.
        for (names, kind) in [
            (SYNTAX, Builtin::Syntax),
            (READS, Builtin::Reads),
            (READS_PRIMARY, Builtin::ReadsPrimary),
            (TELLS, Builtin::Tells),
            (WRITES, Builtin::Writes),
            (SESSION_LOCKS, Builtin::SessionLock),
        ] {
            for name in names.split(' ') {
                assert_eq!(lookup(name.as_bytes()), Some(kind), "{name}");
                assert_eq!(lookup(name.to_ascii_uppercase().as_bytes()), Some(kind), "{name}");
            }
        }
        assert_eq!(lookup(b"no_such_function"), None);
        assert_eq!(lookup(b""), None);
    }

    #[test]
    fn at_least_half_of_the_table_is_free() {
        // A fuller table means long searches.
        assert!(TABLE.iter().flatten().count() * 2 < SLOTS);
    }
}
