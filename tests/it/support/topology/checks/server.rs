//! `Server` on every topology: the administrator sees one data set.

use crate::support::monitor::Monitor;
use crate::support::server::Server;

#[tokio::test]
async fn the_administrator_sees_one_data_set_on_every_topology() {
    for topology in ["single", "acl", "tls", "cluster", "shards", "sentinel"] {
        let server = Server::start_on(topology).await;
        let empty = server.digest().await;
        let monitor = Monitor::start(&server).await;
        for key in ["a", "b", "c", "d", "e"] {
            let _: String = server.run(&["SET", key, key]).await;
            let value: String = server.run(&["GET", key]).await;
            assert_eq!(value, key, "{topology}");
        }
        let mut keys = server.keys("*").await;
        keys.sort();
        assert_eq!(keys, ["a", "b", "c", "d", "e"], "{topology}");
        assert_eq!(server.run::<usize>(&["DBSIZE"]).await, 5, "{topology}");
        // On a cluster also where it went astray.
        let asked = monitor.commands(&server, "\"SET\" \"e\"").await;
        assert!(!asked.is_empty(), "{topology}");
        let full = server.digest().await;
        let _: String = server.run(&["SET", "e", "f"]).await;
        assert_ne!(server.digest().await, full, "{topology}");
        let limit: String = server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
        assert_eq!(limit, "OK");
        for key in ["a", "b", "c"] {
            let refused = server.try_run::<()>(&["SET", key, "2"]).await;
            let refused = refused.expect_err("all are full").to_string();
            assert!(refused.contains("maxmemory"), "{topology}: {refused}");
        }
        let _: String = server.run(&["FLUSHALL"]).await;
        assert_eq!(server.digest().await, empty, "{topology}");
    }
}
