//! The table of an app's resumable clients by token. The clients themselves are in `clients.rs`.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::client::ResumableClient;
use crate::protocol::resume_token::ResumeToken;

/// Each client has its own token, so that a place in the table, of which there may be twice as many as clients, is one
/// pointer.
#[derive(Debug, Default)]
pub(super) struct ClientTable {
    places: HashTable<Box<ResumableClient>>,
    /// Clients choose their tokens: where these end up must not be for them to say.
    hasher: RandomState,
}

impl ClientTable {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn get(&self, token: &ResumeToken) -> Option<&ResumableClient> {
        self.places
            .find(self.hasher.hash_one(token), |client| client.token == *token)
            .map(|client| &**client)
    }

    pub(super) fn get_mut(&mut self, token: &ResumeToken) -> Option<&mut ResumableClient> {
        self.places
            .find_mut(self.hasher.hash_one(token), |client| client.token == *token)
            .map(|client| &mut **client)
    }

    /// The client of that token, made if there is none; whether there was.
    pub(super) fn get_or_make(&mut self, token: &ResumeToken) -> (&mut ResumableClient, bool) {
        match self.entry(token) {
            Entry::Occupied(place) => (&mut **place.into_mut(), true),
            Entry::Vacant(place) => {
                let client = Box::new(ResumableClient::new(token.clone()));
                (&mut **place.insert(client).into_mut(), false)
            }
        }
    }

    /// Puts a client in, in the place of another of its token.
    pub(super) fn insert(&mut self, client: ResumableClient) {
        let client = Box::new(client);
        match self.entry(&client.token) {
            Entry::Occupied(mut place) => *place.get_mut() = client,
            Entry::Vacant(place) => drop(place.insert(client)),
        }
    }

    fn entry(&mut self, token: &ResumeToken) -> Entry<'_, Box<ResumableClient>> {
        let Self { places, hasher } = self;
        places.entry(
            hasher.hash_one(token),
            |client| client.token == *token,
            |client| hasher.hash_one(&client.token),
        )
    }

    pub(super) fn remove(&mut self, token: &ResumeToken) -> Option<Box<ResumableClient>> {
        let place = self
            .places
            .find_entry(self.hasher.hash_one(token), |client| client.token == *token)
            .ok()?;
        Some(place.remove().0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &ResumableClient> {
        self.places.iter().map(|client| &**client)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut ResumableClient> {
        self.places.iter_mut().map(|client| &mut **client)
    }

    /// Takes all out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Box<ResumableClient>> {
        self.places.drain()
    }

    /// Gives memory back once few are left, which nobody would ask for otherwise.
    pub(super) fn shrink(&mut self) {
        if self.is_empty() {
            self.places = HashTable::new();
        } else if self.places.capacity() > 1024 && self.len() < self.places.capacity() / 8 {
            // To twice as many, so that the next who come do not make it grow again at once.
            let Self { places, hasher } = self;
            places.shrink_to(places.len() * 2, |client| hasher.hash_one(&client.token));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(number: usize) -> ResumeToken {
        ResumeToken::parse(&format!("0123456789abcdef-{number}")).unwrap()
    }

    #[test]
    fn a_client_is_found_by_its_token_alone_until_it_is_taken_out() {
        let mut table = ClientTable::default();
        for number in 0..3000 {
            let (client, was_there) = table.get_or_make(&token(number));
            assert!(!was_there && client.token == token(number));
            client.told = number as u32;
        }
        assert!(table.get_or_make(&token(7)).1, "it is not made twice");
        let mut other = ResumableClient::new(token(8));
        other.told = 1;
        table.insert(other);
        assert_eq!((table.len(), table.get(&token(8)).unwrap().told), (3000, 1));
        for number in 10..3000 {
            assert_eq!(table.remove(&token(number)).unwrap().told, number as u32);
            assert!(table.get(&token(number)).is_none() && table.remove(&token(number)).is_none());
        }
        table.shrink();
        assert!(table.places.capacity() < 100, "{}", table.places.capacity());
        assert_eq!(table.get_mut(&token(9)).unwrap().told, 9);
        assert_eq!((table.iter().count(), table.drain().count()), (10, 10));
        table.shrink();
        assert_eq!(table.places.capacity(), 0);
    }
}
