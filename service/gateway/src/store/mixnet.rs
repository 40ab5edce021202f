//! Documents of the mixnet's relay directory.

use fieldpost_transport::htx::directory::SignedDocument;

use crate::store::Store;

/// How many documents of a network are kept.
const KEPT: i64 = 8;

impl Store {
    /// Keeps documents that a node of ours believes, in place of others of the same number, and of all
    /// the newest eight.
    ///
    /// # Errors
    ///
    /// When the database cannot be asked.
    pub async fn keep_mixnet_documents(
        &self,
        network: [u8; 32],
        documents: &[SignedDocument],
    ) -> sqlx::Result<()> {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let mut transaction = self.pool.begin().await?;
        for document in documents {
            sqlx::query!(
                r#"
                insert into mixnet_document (network, number, epoch, document, learned_at)
                values ($1, $2, $3, $4, $5)
                on conflict (network, number) do update
                    set epoch = excluded.epoch, document = excluded.document
                    where mixnet_document.document <> excluded.document
                "#,
                network.as_slice(),
                number(document.document().number),
                number(document.document().epoch),
                document.to_bytes(),
                self.clock.now(),
            )
            .execute(&mut *transaction)
            .await?;
        }
        sqlx::query!(
            r#"
            delete from mixnet_document
            where network = $1
                and number <= (select max(number) from mixnet_document where network = $1) - $2
            "#,
            network.as_slice(),
            KEPT,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await
    }

    /// The documents of a network that are kept, oldest first. None is believed by that.
    ///
    /// # Errors
    ///
    /// When the database cannot be asked.
    pub async fn mixnet_documents(&self, network: [u8; 32]) -> sqlx::Result<Vec<SignedDocument>> {
        let kept = sqlx::query_scalar!(
            "select document from mixnet_document where network = $1 order by number",
            network.as_slice(),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(kept.iter().filter_map(|bytes| SignedDocument::decode(bytes).ok()).collect())
    }
}
